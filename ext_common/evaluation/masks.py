"""Segmentations in the one form that the mask metrics compute with: compressed RLE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pycocotools import mask as mask_utils


def to_rle(segmentation: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """Compressed run-length encoding of polygons, an uncompressed or a compressed RLE.

    Args:
        segmentation: as in COCO and LVIS files; polygons in pixels.
        image: the image's record, with ``height`` and ``width``.
    """
    if isinstance(segmentation, list):
        parts = mask_utils.frPyObjects(segmentation, image["height"], image["width"])
        return mask_utils.merge(parts)
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, image["height"], image["width"])
    return segmentation
