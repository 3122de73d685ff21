"""What all sources of regions have in common.

Legend: N images, C channels, H, W pixels, R regions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from detectron2.structures import Boxes, Instances
from torch import Tensor

Sizes = Sequence[tuple[int, int]]
Images = Sequence[Tensor] | Tensor
"""Per image ``[3, H, W]``, or padded ``[N, 3, H, W]``; not normalised."""


class RegionSource(Protocol):
    """Proposes boxes in pictures, without gradients."""

    def propose(self, images: Images, image_sizes: Sizes) -> list[Instances]:
        """Per image ``proposal_boxes`` (XYXY pixels) and ``objectness_logits`` [R].

        Args:
            images: RGB, in the value range the source was made for.
            image_sizes: per image (height, width); padding beyond is ignored.
        """


def as_regions(
    boxes_R4: Tensor, image_size: tuple[int, int], logits_R: Tensor | None = None
) -> Instances:
    """Boxes as proposals of one image; without logits, they are 0."""
    regions = Instances(image_size)
    regions.proposal_boxes = Boxes(boxes_R4)
    regions.objectness_logits = boxes_R4.new_zeros(len(boxes_R4)) if logits_R is None else logits_R
    return regions
