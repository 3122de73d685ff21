"""Selective search in the authors' form (specification 1.1), with equal boxes and less work."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soco_ext.proposals.merging import Merged, merge_regions
from soco_ext.proposals.regions import find_regions
from soco_ext.proposals.segmentation import PUBLISHED_SEARCH, SearchSettings, segment


def selective_search(
    image_HW3: NDArray[np.uint8], settings: SearchSettings = PUBLISHED_SEARCH
) -> Merged:
    """The regions of an image: the segments, then every merge.

    Args:
        image_HW3: RGB.
        settings: of the segmentation.

    Raises:
        ConfigError: Numba is missing.
    """
    return search_segments(image_HW3, segment(image_HW3, settings))


def search_segments(image_HW3: NDArray[np.uint8], label_HW: NDArray[np.integer]) -> Merged:
    """The same from a segmentation (number of the segment of each pixel)."""
    return merge_regions(find_regions(image_HW3, label_HW))
