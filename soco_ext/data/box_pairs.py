"""The boxes that a pair of views shares, from their choice to what the model gets (spec. 2.3 to 2.6).

What is random (:func:`draw_boxes`) is apart from what follows from it (:func:`paired`).

Legend: K boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from soco_ext.data.boxes import (
    Boxes,
    clipped,
    common_ids,
    flipped,
    jittered,
    normalised,
    whole_crop,
)
from soco_ext.data.crops import Crop
from soco_ext.data.draws import Draws
from soco_ext.data.levels import levels_of, view_pixels
from soco_ext.data.view_spec import JitterSpec


@dataclass(frozen=True)
class LevelRule:
    """Which boxes belong on which level; see ``levels.levels_of``."""

    largest: Sequence[int]
    start: int
    end: int


@dataclass(frozen=True)
class ViewBoxes:
    """The boxes of one view in one pair.

    Args:
        boxes_K5: in the crop's coordinates, before flipping.
        shares_K5: float32, normalised and flipped with the view.
        levels_K: int64, -1 where there is none.
    """

    boxes_K5: Boxes
    shares_K5: NDArray[np.float32]
    levels_K: NDArray[np.int64]


@dataclass(frozen=True)
class PairBoxes:
    """The boxes of a pair, before they are repeated: in each view what its crop shows of them.

    Args:
        first, second: in the coordinates of the crops.
    """

    first: Boxes
    second: Boxes

    @classmethod
    def of(cls, chosen_K5: Boxes, moved_K5: Boxes, crops: tuple[Crop, Crop]) -> PairBoxes:
        """Cut the boxes (for the first view the jittered ones) to the crops.

        Where no box is in both, both views have one box: all of their crop.
        """
        first, second = clipped(moved_K5, crops[0]), clipped(chosen_K5, crops[1])
        if not len(common_ids(first, second)):
            return cls(whole_crop(crops[0]), whole_crop(crops[1]))
        return cls(first, second)

    def repeatable(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places of the boxes that both have, in each list: those that padding repeats."""
        ids = common_ids(self.first, self.second)
        return (
            np.flatnonzero(np.isin(self.first[:, 4], ids)),
            np.flatnonzero(np.isin(self.second[:, 4], ids)),
        )

    def padded(self, count: int, draws: Draws) -> PairBoxes:
        """Each list filled up to ``count`` with random repeats of its own."""
        lists = []
        for boxes_K5, places in zip((self.first, self.second), self.repeatable(), strict=True):
            lacking = max(count - len(boxes_K5), 0)
            again = places[draws.repeat(lacking, len(places))] if lacking else places[:0]
            lists.append(np.concatenate([boxes_K5, boxes_K5[again]]))
        return PairBoxes(*lists)


def choose_boxes(candidates_K5: Boxes, strategy: str, count: int, most: int, draws: Draws) -> Boxes:
    """The boxes of a pair out of those that both views show.

    Args:
        candidates_K5: boxes of the image.
        strategy: "random", "top", "area" or "none"; see ``ViewOptions``.
        count: how many; fewer where there are fewer.
        most: limit for "none".
        draws: for "random".
    """
    if strategy == "none":
        return candidates_K5[:most]
    if len(candidates_K5) <= count:
        return candidates_K5
    if strategy == "random":
        return candidates_K5[draws.choose(count, len(candidates_K5))]
    if strategy == "area":
        sides_K2 = candidates_K5[:, 2:4] - candidates_K5[:, :2] + 1
        largest_first = np.argsort(-sides_K2.prod(axis=1), kind="stable")
        return candidates_K5[largest_first[:count]]
    return candidates_K5[:count]


def draw_jitter(boxes_K5: Boxes, spec: JitterSpec | None, draws: Draws) -> Boxes:
    """Boxes of which some are moved and resized."""
    if spec is None:
        return boxes_K5
    used_K = np.zeros(len(boxes_K5), dtype=bool)
    amounts_K4 = np.zeros((len(boxes_K5), 4))
    for place in range(len(boxes_K5)):
        used_K[place] = draws.uniform(0.0, 1.0) < spec.chance
        if used_K[place]:
            amounts_K4[place] = [draws.uniform(-spec.ratio, spec.ratio) for _ in range(4)]
    return jittered(boxes_K5, used_K, amounts_K4)


def view_boxes(
    boxes_K5: Boxes, crop: Crop, size: int, *, mirrored: bool, rule: LevelRule
) -> ViewBoxes:
    """What the model gets of the boxes of a crop, in a view of ``size`` pixels.

    Levels are those of the view before it is flipped.
    """
    pixels_K4 = view_pixels(boxes_K5, crop, size)
    shares_K5 = normalised(boxes_K5, crop)
    if mirrored:
        shares_K5 = flipped(shares_K5)
    levels_K = levels_of(pixels_K4, rule.largest, rule.start, rule.end)
    return ViewBoxes(boxes_K5, shares_K5.astype(np.float32), levels_K)


def as_pair(numbers: tuple[int, int], first: ViewBoxes, second: ViewBoxes) -> dict[str, Any]:
    """The pair as a sample has it: ``views``, ``boxes`` and ``levels``, each a tuple of two."""
    both = (first, second)
    return {
        "views": numbers,
        "boxes": tuple(torch.from_numpy(side.shares_K5) for side in both),
        "levels": tuple(torch.from_numpy(side.levels_K) for side in both),
    }
