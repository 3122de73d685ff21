"""A module with a detector's names, for tests of weights and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ext_common.vocabulary import Vocabulary


class Detector(nn.Module):
    """A body, a neck and a head, with the names that detectors have."""

    def __init__(self, width: int = 3, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        bottom_up = nn.ModuleDict(
            {
                "stem": nn.ModuleDict(
                    {"conv1": nn.Conv2d(1, width, 1), "norm": FrozenBatchNorm2d(width)}
                ),
                "res2": nn.ModuleList([nn.Conv2d(width, width, 1, bias=False)]),
            }
        )
        self.backbone = nn.ModuleDict({"bottom_up": bottom_up, "fpn": nn.Conv2d(width, 2, 1)})
        self.head = nn.Linear(2, 4)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.vocabulary = vocabulary
        if vocabulary is not None and vocabulary.embeddings_CD is not None:
            self.head.register_buffer("zs_weight", vocabulary.embeddings_CD.t().clone())
            self.head.register_buffer("freq_weight", torch.ones(len(vocabulary)))


def randomised(model: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return model


def save(model: nn.Module, path: Path, **changes: Any) -> Path:
    state = model.state_dict()
    state.update(changes)
    torch.save({"model": {k: v for k, v in state.items() if v is not None}}, path)
    return path


def same(a: nn.Module, b: nn.Module, *, but: tuple[str, ...] = ()) -> bool:
    theirs = b.state_dict()
    return all(
        torch.equal(value, theirs[key])
        for key, value in a.state_dict().items()
        if not key.endswith(but)
    )


def words(*names: str, encoder: str = "hash") -> Vocabulary:
    generator = torch.Generator().manual_seed(len(names))
    embeddings = torch.rand(len(names), 2, generator=generator)
    return Vocabulary.from_embeddings(list(names), embeddings, encoder)
