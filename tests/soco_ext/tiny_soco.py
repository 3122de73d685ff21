"""A small SoCo configuration and made-up samples for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ext_common.config import load_config
from ext_common.packages import register_all

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "soco"
SIZES = {"SoCoFPN": (64, 64, 48), "SoCoC4": (64, 64)}


def tiny_config(model: str = "SoCoFPN", *words: Any) -> CfgNode:
    """``SoCo_tiny.yaml``, smaller still."""
    register_all()
    small = ["MODEL.META_ARCHITECTURE", model, "SOCO.BASE_WIDTH", 8, "MODEL.FPN.OUT_CHANNELS", 8]
    small += ["SOCO.HEAD_DIM", 16, "SOCO.HIDDEN_DIM", 24, "SOCO.EMBEDDING_DIM", 8]
    return load_config(CONFIGS / "SoCo_tiny.yaml", [*small, *words])


def boxes_of(generator: torch.Generator, count: int) -> Tensor:
    """Normalised boxes with ids 1, 2, ... of which the last is repeated."""
    corner = torch.rand(count, 2, generator=generator) * 0.5
    size = 0.2 + torch.rand(count, 2, generator=generator) * 0.25
    ids = torch.arange(1.0, count + 1)
    ids[-1] = ids[-2]
    return torch.cat([corner, corner + size, ids[:, None]], dim=1)


def samples(
    count: int, seed: int, sizes: tuple[int, ...] = SIZES["SoCoFPN"], boxes: int = 3
) -> list[dict[str, Any]]:
    """A batch as the loader gives it; some boxes have no level."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for image in range(count):
        pairs = [
            {
                "views": (0, other),
                "boxes": (boxes_of(generator, boxes), boxes_of(generator, boxes)),
                "levels": tuple(torch.randint(-1, 4, (boxes,), generator=generator) for _ in "ab"),
            }
            for other in range(1, len(sizes))
        ]
        views = [torch.randn(3, size, size, generator=generator) for size in sizes]
        made.append({"views": views, "pairs": pairs, "image_id": f"{seed}-{image}"})
    return made


class MadeUpLoader:
    """An endless loader whose n-th batch is a function of n, and which can be continued."""

    def __init__(self, cfg: CfgNode) -> None:
        self._size = cfg.SOLVER.IMS_PER_BATCH
        self._sizes = SIZES[cfg.MODEL.META_ARCHITECTURE]
        self._next = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while True:
            self._next += 1
            yield samples(self._size, self._next, self._sizes)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]
