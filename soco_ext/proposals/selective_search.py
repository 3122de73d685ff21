"""Selective search in the authors' form (specification 1.1), with equal boxes and less work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError
from soco_ext.proposals.merging import Merged, merge_regions
from soco_ext.proposals.regions import find_regions


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the initial segmentation; the defaults are those of the authors' driver.

    Args:
        scale: higher = larger segments.
        sigma: of the Gaussian blur before it, in pixels.
        min_size: smaller segments are joined with a neighbour, in pixels.
    """

    scale: float = 300.0
    sigma: float = 0.9
    min_size: int = 100


def selective_search(
    image_HW3: NDArray[np.uint8], settings: SearchSettings = SearchSettings()
) -> Merged:
    """The regions of an image: the segments, then every merge.

    Args:
        image_HW3: RGB.
        settings: of the segmentation.

    Raises:
        ConfigError: scikit-image is missing.
    """
    return search_segments(image_HW3, segment(image_HW3, settings))


def search_segments(image_HW3: NDArray[np.uint8], label_HW: NDArray[np.integer]) -> Merged:
    """The same from a segmentation (number of the segment of each pixel)."""
    return merge_regions(find_regions(image_HW3, label_HW))


def segment(image_HW3: NDArray[np.uint8], settings: SearchSettings) -> NDArray[np.integer]:
    """Felzenszwalb's segmentation of the image scaled to 0..1.

    This is most of the search's time and is left to scikit-image: the labels have to be the same
    down to the order of equal edges, which is NumPy's, and joining along sorted edges goes one
    edge after the other, in compiled code there.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise ConfigError(
            "selective search in the authors' form needs scikit-image",
            fix="pip install scikit-image, or choose an OpenCV mode or random boxes",
        ) from error
    labels: NDArray[np.integer] = felzenszwalb(
        image_HW3 / 255.0, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size
    )
    return labels
