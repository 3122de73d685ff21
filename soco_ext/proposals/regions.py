"""The regions of a segmentation and their histograms, as selective search compares them.

Legend: H, W rows and columns; R regions; ``bins`` 75 colour bins (25 each for hue, saturation and
value), 30 texture bins (10 for each of red, green and blue).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soco_ext.proposals.texture import binary_patterns

COLOUR_BINS = 25
TEXTURE_BINS = 10
_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Regions:
    """The segments of an image, in the order in which they appear (rows first).

    Args:
        boxes_R4: int64 first and last column and row of each: x1, y1, x2, y2.
        sizes_R: int64 pixels.
        colours_RB: float64 [R, 75], each channel's share of pixels per bin.
        textures_RB: float64 [R, 30].
        pixels: of the image.
    """

    boxes_R4: NDArray[np.int64]
    sizes_R: NDArray[np.int64]
    colours_RB: NDArray[np.float64]
    textures_RB: NDArray[np.float64]
    pixels: int


def find_regions(image_HW3: NDArray[np.uint8], label_HW: NDArray[np.integer]) -> Regions:
    """Measure all segments in one pass over the image (specification 1.1).

    Args:
        image_HW3: RGB.
        label_HW: number of the segment of each pixel.
    """
    region_P, count = _numbered(label_HW.ravel())
    sizes_R = np.bincount(region_P, minlength=count)
    return Regions(
        _boxes(region_P.reshape(label_HW.shape), count),
        sizes_R,
        _colours(image_HW3, region_P, count) / sizes_R[:, None],
        _textures(image_HW3, region_P, count) / sizes_R[:, None],
        label_HW.size,
    )


def _numbered(label_P: NDArray[np.integer]) -> tuple[NDArray[np.int64], int]:
    """Regions numbered in the order of their first pixels, and how many there are."""
    if label_P.min() < 0 or label_P.max() >= label_P.size:
        label_P = np.unique(label_P, return_inverse=True)[1]
    # of repeated places the last value stays: that of the first pixel
    first_L = np.full(int(label_P.max()) + 1, label_P.size)
    first_L[label_P[::-1]] = np.arange(label_P.size - 1, -1, -1)
    order = np.argsort(first_L)
    rank_L = np.empty(len(order), dtype=np.int64)
    rank_L[order] = np.arange(len(order))
    return rank_L[label_P], int((first_L < label_P.size).sum())


def _boxes(region_HW: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    height, width = region_HW.shape
    boxes_R4 = np.empty((count, 4), dtype=np.int64)
    boxes_R4[:, :2] = max(height, width)
    boxes_R4[:, 2:] = 0
    # where a row's runs of one region begin and end: far fewer than pixels
    flat_P = region_HW.ravel()
    changes = np.flatnonzero(flat_P[1:] != flat_P[:-1]) + 1
    starts = np.union1d(changes, np.arange(0, flat_P.size, width))
    last = np.append(starts[1:], flat_P.size) - 1
    owners = flat_P[starts]
    rows = starts // width
    np.minimum.at(boxes_R4[:, 0], owners, starts % width)
    np.minimum.at(boxes_R4[:, 1], owners, rows)
    np.maximum.at(boxes_R4[:, 2], owners, last % width)
    np.maximum.at(boxes_R4[:, 3], owners, rows)
    return boxes_R4


def _colours(
    image_HW3: NDArray[np.uint8], region_P: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Counts [R, 75]. Hue and saturation lie in 0..1 of a range to 255, so in the first bin."""
    # several times faster than a maximum over three neighbours in memory
    largest_HW = np.maximum(image_HW3[:, :, 0], image_HW3[:, :, 1])
    value_P = np.maximum(largest_HW, image_HW3[:, :, 2]).ravel()
    counts_RB = np.zeros((count, 3 * COLOUR_BINS))
    counts_RB[:, 0] = counts_RB[:, COLOUR_BINS] = np.bincount(region_P, minlength=count)
    counts_RB[:, 2 * COLOUR_BINS :] = _counts(value_P, region_P, count, COLOUR_BINS)
    return counts_RB


def _textures(
    image_HW3: NDArray[np.uint8], region_P: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Counts [R, 30] of local binary patterns: 8 points at radius 1."""
    channels = [
        _counts(binary_patterns(image_HW3[:, :, channel]), region_P, count, TEXTURE_BINS)
        for channel in range(3)
    ]
    return np.concatenate(channels, axis=1)


def _counts(
    values_P: NDArray[np.uint8], region_P: NDArray[np.int64], count: int, bins: int
) -> NDArray[np.int64]:
    """Histogram [R, bins] over 0..255 of every region's values."""
    # what NumPy's histogram does with each of the 256 values
    edges = np.histogram_bin_edges([], bins, _RANGE)
    bin_of = np.minimum(np.searchsorted(edges, np.arange(256), side="right") - 1, bins - 1)
    flat = np.bincount(region_P * bins + bin_of[values_P.ravel()], minlength=count * bins)
    return flat.reshape(count, bins)
