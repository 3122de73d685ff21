"""One of two processes that share an evaluation (started by test_evaluation_build.py)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import ext_common  # noqa: F401 - a new process: detectron2 is imported below, after this


def evaluate_half(rank: int, folder: str) -> None:
    """Every second image on each rank; writes what ``evaluate`` returned to ``<rank>.json``."""
    from ext_common.evaluation.lvis import LvisEvaluator
    from tests.ext_common.evaluation_cases import (
        random_content,
        random_predictions,
        registered,
        run,
    )

    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, world_size=2, rank=rank)
    content = random_content(3, federated=True)
    own = dict(list(random_predictions(content, 4, masks=True).items())[rank::2])
    own_folder = Path(folder) / str(rank)
    own_folder.mkdir()
    with registered(own_folder, content) as name:
        results = run(LvisEvaluator(name), own)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
