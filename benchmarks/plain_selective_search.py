"""Selective search written down as the SoCo specification (1.1) says it: scikit-image's segmentation, then
one region at a time.

What ``soco_ext.proposals`` is compared with, for time (benchmarks) and for equal boxes (tests).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from skimage.feature import local_binary_pattern
from skimage.segmentation import felzenszwalb

from soco_ext.proposals.segmentation import SearchSettings

Region = dict[str, Any]


def plain_segment(image_HW3: NDArray[np.uint8], settings: SearchSettings) -> NDArray[np.integer]:
    """Number of the segment of each pixel."""
    labels: NDArray[np.integer] = felzenszwalb(
        image_HW3 / 255.0, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size
    )
    return labels


def plain_search(
    image_HW3: NDArray[np.uint8], label_HW: NDArray[np.integer]
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Rectangles (x, y, width, height) and sizes of all regions, in order of creation."""
    regions = _first_regions(image_HW3, label_HW)
    pixels = label_HW.size
    pairs = {
        (first, second): _similarity(regions[first], regions[second], pixels)
        for first in range(len(regions))
        for second in range(first + 1, len(regions))
        if _touches(regions[first], regions[second])
    }
    while pairs:
        first, second = sorted(pairs.items(), key=lambda item: item[1])[-1][0]
        new = len(regions)
        regions.append(_joined(regions[first], regions[second]))
        gone = [pair for pair in pairs if first in pair or second in pair]
        for pair in gone:
            del pairs[pair]
        for pair in gone:
            if pair == (first, second):
                continue
            other = pair[1] if pair[0] in (first, second) else pair[0]
            pairs[new, other] = _similarity(regions[new], regions[other], pixels)
    rects = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (r["box"] for r in regions)]
    return rects, [region["size"] for region in regions]


def _first_regions(image_HW3: NDArray[np.uint8], label_HW: NDArray[np.integer]) -> list[Region]:
    hsv_HW3 = rgb2hsv(image_HW3.astype(np.float64))
    texture_HW3 = np.stack(
        [local_binary_pattern(image_HW3[:, :, c], 8, 1.0) for c in range(3)], axis=2
    )
    regions = []
    for label in dict.fromkeys(label_HW.ravel().tolist()):
        inside = label_HW == label
        rows, columns = np.nonzero(inside)
        regions.append(
            {
                "box": (
                    int(columns.min()),
                    int(rows.min()),
                    int(columns.max()),
                    int(rows.max()),
                ),
                "size": len(rows),
                "colour": _histogram(hsv_HW3[inside], 25),
                "texture": _histogram(texture_HW3[inside], 10),
            }
        )
    return regions


def _histogram(values_P3: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    parts = [np.histogram(values_P3[:, c], bins, (0.0, 255.0))[0] for c in range(3)]
    return np.concatenate(parts) / len(values_P3)


def _touches(first: Region, second: Region) -> bool:
    x1, y1, x2, y2 = first["box"]
    left, top, right, bottom = second["box"]
    return any(x1 < x < x2 and y1 < y < y2 for x in (left, right) for y in (top, bottom))


def _similarity(first: Region, second: Region, pixels: int) -> float:
    together = first["size"] + second["size"]
    x1, y1 = (min(first["box"][n], second["box"][n]) for n in (0, 1))
    x2, y2 = (max(first["box"][n], second["box"][n]) for n in (2, 3))
    colour = sum(min(a, b) for a, b in zip(first["colour"], second["colour"], strict=True))
    texture = sum(min(a, b) for a, b in zip(first["texture"], second["texture"], strict=True))
    size = 1.0 - together / pixels
    fill = 1.0 - ((x2 - x1) * (y2 - y1) - together) / pixels
    return float(colour + texture + size + fill)


def _joined(first: Region, second: Region) -> Region:
    size = first["size"] + second["size"]
    boxes = (first["box"], second["box"])
    return {
        "box": tuple((min if n < 2 else max)(box[n] for box in boxes) for n in range(4)),
        "size": size,
        **{
            key: (first[key] * first["size"] + second[key] * second["size"]) / size
            for key in ("colour", "texture")
        },
    }
