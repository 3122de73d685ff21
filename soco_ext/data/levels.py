"""The pyramid level of a box: by its size in the pixels of its own view (specification 2.6).

Legend: K boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soco_ext.data.boxes import Boxes
from soco_ext.data.crops import Crop

NO_LEVEL = -1


def view_pixels(boxes_K5: Boxes, crop: Crop, size: int) -> NDArray[np.int64]:
    """int64 [K, 4]: boxes of a crop in the pixels of the view, cut to whole pixels, not flipped."""
    scaled_K4 = boxes_K5[:, :4].copy()
    scaled_K4[:, [0, 2]] = scaled_K4[:, [0, 2]] * size / crop.width
    scaled_K4[:, [1, 3]] = scaled_K4[:, [1, 3]] * size / crop.height
    return scaled_K4.astype(np.int64)


def levels_of(
    pixels_K4: NDArray[np.integer], largest: Sequence[int], start: int, end: int
) -> NDArray[np.int64]:
    """int64 [K]: the first level that is large enough, counted from ``start``; -1 where none is.

    Args:
        pixels_K4: boxes in view pixels.
        largest: largest side of a box for each level; the side is the root of its area.
        start, end: levels that are used; ``end`` is not.
    """
    sides_K2 = pixels_K4[:, 2:4] - pixels_K4[:, :2] + 1
    side_K = np.sqrt(sides_K2.prod(axis=1).astype(np.float64))
    fits_KP = side_K[:, None] <= np.asarray(largest[start:end], dtype=np.float64)
    return np.where(fits_KP.any(axis=1), fits_KP.argmax(axis=1), NO_LEVEL).astype(np.int64)
