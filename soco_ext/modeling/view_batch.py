"""What the networks take: views of several images, and boxes that correspond between two views.

Shapes: N images, V views (each with a size of its own), K boxes per image and view, P levels; boxes
are normalised XYXY and an id, [N, K, 5].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ext_common.errors import DatasetError


@dataclass(frozen=True)
class BoxSet:
    """The boxes of one view, as one pair of views has them.

    Args:
        view: number of the view, from 0.
        boxes_NK5: float; on the device of the views.
        levels_NK: pyramid level of each box, -1 = none; on the CPU, so that choosing rows does not
            wait for the device. None where levels have no meaning (C4) or a matrix is given.
    """

    view: int
    boxes_NK5: Tensor
    levels_NK: Tensor | None = None


@dataclass(frozen=True)
class BoxPair:
    """Two views with corresponding boxes.

    Args:
        first, second: the boxes of both.
        matrix_NMM: correspondence of all slots (level outer, box inner), instead of ids and levels;
            for tests and for other matching rules.
    """

    first: BoxSet
    second: BoxSet
    matrix_NMM: Tensor | None = None


@dataclass(frozen=True)
class ViewBatch:
    """A batch on its device.

    Args:
        views: V tensors [N, 3, H, W], normalised RGB.
        pairs: which views are contrasted.
    """

    views: Sequence[Tensor]
    pairs: Sequence[BoxPair]

    @property
    def sets(self) -> list[BoxSet]:
        """All box sets: the first of every pair, then the second of every pair.

        In this order the released code runs its head (specification 3.1).
        """
        return [pair.first for pair in self.pairs] + [pair.second for pair in self.pairs]


def collate(samples: Sequence[Mapping[str, Any]], device: torch.device) -> ViewBatch:
    """Put the loader's samples together.

    Args:
        samples: dicts with ``views`` (tensors [3, H, W]) and ``pairs`` (dicts with ``views``,
            ``boxes``, ``levels``), all with the same views and pairs.
        device: where the networks are.

    Raises:
        DatasetError: samples without views, or with different ones.
    """
    shapes = {_layout(sample) for sample in samples}
    if len(shapes) != 1:
        raise DatasetError(
            f"a batch of {len(samples)} samples has {len(shapes)} kinds of views",
            fix="all samples of a batch need the same views and as many boxes",
        )
    first = samples[0]
    views = [
        torch.stack([sample["views"][v] for sample in samples]).to(device, non_blocking=True)
        for v in range(len(first["views"]))
    ]
    pairs = [
        BoxPair(
            _box_set([sample["pairs"][number] for sample in samples], 0, device),
            _box_set([sample["pairs"][number] for sample in samples], 1, device),
        )
        for number in range(len(first["pairs"]))
    ]
    return ViewBatch(views, pairs)


def _layout(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    if not sample.get("views") or not sample.get("pairs"):
        raise DatasetError(
            f"a sample of SoCo has views and pairs, this one has {', '.join(sorted(sample))}",
            fix="set DATALOADER.SAMPLER_TRAIN SoCoViews",
        )
    views = tuple(tuple(view.shape) for view in sample["views"])
    pairs = tuple((*pair["views"], *(len(b) for b in pair["boxes"])) for pair in sample["pairs"])
    return views, pairs


def _box_set(pairs: Sequence[Mapping[str, Any]], side: int, device: torch.device) -> BoxSet:
    boxes_NK5 = torch.stack([pair["boxes"][side] for pair in pairs])
    levels_NK = torch.stack([pair["levels"][side] for pair in pairs])
    return BoxSet(pairs[0]["views"][side], boxes_NK5.to(device, non_blocking=True), levels_NK.cpu())
