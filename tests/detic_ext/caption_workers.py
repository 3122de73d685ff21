"""What the processes of the caption test run; importable, as a new process needs it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from tests.detic_ext.tiny_model import CAPTION_OPTS, box_item, caption_item, losses_of, tiny_model

CAPTIONS = (["a red square", "two blue discs"], ["a green star", "a red disc in the corner"])
"""By process."""


def sync_model() -> nn.Module:
    """The same weights in every process; a box batch has half the images of a caption batch."""
    return tiny_model(
        *CAPTION_OPTS,
        "MODEL.SYNC_CAPTION_BATCH", True,
        "MODEL.CAP_BATCH_RATIO", 2,
        "MODEL.ROI_BOX_HEAD.NEG_CAP_WEIGHT", 0.25,
    ).train()  # fmt: skip


def caption_batch(rank: int) -> list[dict[str, Any]]:
    """Pictures that depend on the process alone."""
    torch.manual_seed(50 + rank)
    return [caption_item(text) for text in CAPTIONS[rank]]


def run_steps(args: argparse.Namespace) -> None:
    """A step of captions everywhere, then one where process 1 has boxes."""
    rank = comm.get_rank()
    model = sync_model()
    boxes = [box_item()]
    steps = {
        "captions": caption_batch(rank),
        "mixed": boxes if rank == 1 else caption_batch(rank),
    }
    seen = {}
    for name, batch in steps.items():
        losses = losses_of(model, batch)
        seen[name] = {key: float(value.detach()) for key, value in losses.items()}
    Path(args.folder, f"{rank}.json").write_text(json.dumps(seen))
