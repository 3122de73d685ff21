"""Steps of one process or of two, and which images each saw in them; run by test_exact_resume."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.non_finite import image_ids
from ext_common.trainer import ExtTrainer


def record_all(args: argparse.Namespace) -> None:
    """Write down every run of ``args.runs`` (config file: file to write)."""
    packages.register_all()
    for config_file, result in args.runs.items():
        steps = comm.gather(_steps(config_file, args.steps, args.opts))
        if comm.is_main_process():
            Path(result).write_text(json.dumps(steps))


def _steps(config_file: str, count: int, opts: list[str]) -> list[Any]:
    """Images, losses and the sum of the weights after each of the next steps of this process."""
    cfg = load_config(config_file, opts)
    register_from_config(cfg)
    trainer = ExtTrainer(cfg)
    trainer.resume_or_load(resume=True)
    seen = []
    with EventStorage():
        for batch, _ in zip(trainer.data_loader, range(count), strict=False):
            step = trainer.train_step(batch)
            losses = dict(zip(step.names, step.values_K.tolist(), strict=True))
            weights = sum(float(p.detach().double().sum()) for p in trainer.model.parameters())
            seen.append({"images": image_ids(batch), "losses": losses, "weights": weights})
    return seen
