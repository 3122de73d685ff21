"""A sample of SoCo from an image and its proposals (specification 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from soco_ext.data.box_pairs import (
    LevelRule,
    PairBoxes,
    as_pair,
    choose_boxes,
    draw_jitter,
    view_boxes,
)
from soco_ext.data.boxes import Boxes, in_both, with_ids
from soco_ext.data.colour import change_colours, to_array
from soco_ext.data.crops import Crop, draw_crop, resized_crop, whole_image
from soco_ext.data.cutout import cut_out
from soco_ext.data.draws import Draws
from soco_ext.data.view_options import ViewOptions
from soco_ext.data.view_spec import COPY, WHOLE, ViewPlan


@dataclass(frozen=True)
class DrawnBoxes:
    """What was drawn for an image before any pixel is touched.

    Args:
        crops: of every view.
        pairs: padded boxes of each pair of the plan.
    """

    crops: tuple[Crop, ...]
    pairs: tuple[PairBoxes, ...]


class ViewMaker:
    """Makes the views of an image and the boxes that they share.

    Args:
        options: settings of views and boxes.
    """

    def __init__(self, options: ViewOptions) -> None:
        self.options = options
        self.plan: ViewPlan = options.view_plan()
        self.rule = LevelRule(options.aware_range, options.aware_start, options.aware_end)

    def __call__(
        self, image_HW3: NDArray[np.uint8], proposals_K4: NDArray[np.number], draws: Draws
    ) -> dict[str, Any]:
        """The views and pairs of one image.

        Args:
            image_HW3: RGB.
            proposals_K4: x1, y1, x2, y2, the last pixel inside; none = the whole image is one.
            draws: random numbers of this sample.

        Returns:
            ``views``: a float32 tensor [3, S, S] for each view, normalised RGB. ``pairs``: for each
            pair ``views``, ``boxes`` and ``levels``; see ``box_pairs.as_pair``.
        """
        size_hw = (image_HW3.shape[0], image_HW3.shape[1])
        drawn = self.draw_boxes(size_hw, proposals_K4, draws)
        flips = tuple(draws.uniform(0.0, 1.0) < view.flip for view in self.plan.views)
        return self.render(Image.fromarray(image_HW3), drawn, flips, draws)

    def draw_boxes(
        self, size_hw: tuple[int, int], proposals_K4: NDArray[np.number], draws: Draws
    ) -> DrawnBoxes:
        """Crops that show enough boxes, and the boxes of each pair (section 2.3)."""
        boxes_K5 = with_ids(proposals_K4)
        if not len(boxes_K5):
            boxes_K5 = with_ids(np.array([[0, 0, size_hw[1] - 1, size_hw[0] - 1]]))
        options = self.options
        wanted = max(options.select_k // 2, 1)
        for _ in range(options.max_tries):
            crops = self._draw_crops(size_hw, draws)
            found = [self._candidates(boxes_K5, crops, other) for _, other in self.plan.pairs]
            if all(len(candidates) >= wanted for candidates in found):
                break
            wanted = max(wanted // 2, 1)
        pairs: list[PairBoxes] = []
        for (first, other), candidates_K5 in zip(self.plan.pairs, found, strict=True):
            origin = self.plan.drawn_by(other)
            if origin != other:  # the same crop has the same boxes; pairs start with view 1
                pairs.append(pairs[origin - 1])
                continue
            chosen_K5 = choose_boxes(
                candidates_K5, options.select_strategy, options.select_k, options.padding_k, draws
            )
            moved_K5 = draw_jitter(chosen_K5, self.plan.jitter, draws)
            unpadded = PairBoxes.of(chosen_K5, moved_K5, (crops[first], crops[other]))
            pairs.append(unpadded.padded(options.padding_k, draws))
        return DrawnBoxes(crops, tuple(pairs))

    def render(
        self, image: Image.Image, drawn: DrawnBoxes, flips: tuple[bool, ...], draws: Draws
    ) -> dict[str, Any]:
        """Pixels and normalised boxes of what was drawn; ``draws`` for colours and cutout."""
        pairs = self.pairs(drawn, flips)
        views = []
        for number, spec in enumerate(self.plan.views):
            view = resized_crop(image, drawn.crops[number], spec.size)
            if flips[number]:
                view = ImageOps.mirror(view)
            view_CHW = to_array(change_colours(view, spec.colour, draws))
            if spec.cutout is not None:
                shares_K5 = pairs[max(number - 1, 0)]["boxes"][min(number, 1)].numpy()
                cut_out(view_CHW, shares_K5, spec.cutout, draws)
            views.append(torch.from_numpy(view_CHW))
        return {"views": views, "pairs": pairs}

    def pairs(self, drawn: DrawnBoxes, flips: tuple[bool, ...]) -> list[dict[str, Any]]:
        """Normalised boxes and levels of every pair."""
        result = []
        for numbers, boxes in zip(self.plan.pairs, drawn.pairs, strict=True):
            sides = [
                view_boxes(
                    boxes_K5,
                    drawn.crops[number],
                    self.plan.views[number].size,
                    mirrored=flips[number],
                    rule=self.rule,
                )
                for number, boxes_K5 in zip(numbers, (boxes.first, boxes.second), strict=True)
            ]
            result.append(as_pair(numbers, *sides))
        return result

    def _draw_crops(self, size_hw: tuple[int, int], draws: Draws) -> tuple[Crop, ...]:
        crops: list[Crop] = []
        for spec in self.plan.views:
            if spec.source == WHOLE:
                crops.append(whole_image(size_hw))
            elif spec.source == COPY and spec.of is not None:
                crops.append(crops[spec.of])
            else:
                crops.append(draw_crop(size_hw, spec.scale, spec.aspect, draws))
        return tuple(crops)

    @staticmethod
    def _candidates(boxes_K5: Boxes, crops: tuple[Crop, ...], other: int) -> Boxes:
        return in_both(boxes_K5, crops[0], crops[other])
