"""The boxes of two views: which of them, where they lie, and how they are repeated (spec. 2.2 to 2.5).

Boxes are float64 rows x1, y1, x2, y2, id. The second corner is the last pixel inside, and yet a
normalised box is divided by width and height (not less one), as released.

Legend: K boxes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soco_ext.data.crops import Crop, shared_part

Boxes = NDArray[np.float64]


def with_ids(boxes_K4: NDArray[np.number]) -> Boxes:
    """Boxes with ids 1, 2, ... in their order: [K, 5]."""
    ids_K1 = np.arange(1, len(boxes_K4) + 1, dtype=np.float64)[:, None]
    return np.concatenate([np.asarray(boxes_K4, dtype=np.float64).reshape(-1, 4), ids_K1], axis=1)


def overlapping(boxes_K5: Boxes, corners: tuple[int, int, int, int] | None) -> NDArray[np.bool_]:
    """bool [K]: boxes that overlap a rectangle x1, y1, x2, y2 strictly, if only by a pixel."""
    if corners is None:
        return np.zeros(len(boxes_K5), dtype=bool)
    x1, y1, x2, y2 = corners
    in_x = (boxes_K5[:, 0] < x2) & (x1 < boxes_K5[:, 2])
    return in_x & (boxes_K5[:, 1] < y2) & (y1 < boxes_K5[:, 3])


def in_both(boxes_K5: Boxes, first: Crop, second: Crop) -> Boxes:
    """The boxes of an image that two crops of it show."""
    return boxes_K5[overlapping(boxes_K5, shared_part(first, second))]


def jittered(boxes_K5: Boxes, used_K: NDArray[np.bool_], amounts_K4: NDArray[np.float64]) -> Boxes:
    """Boxes that were moved and resized; not cut to the image.

    Args:
        boxes_K5: the boxes.
        used_K: which ones change.
        amounts_K4: shift right and down and growth in width and height, as shares of those.
    """
    moved_K5 = np.array(boxes_K5, dtype=np.float64)
    size_K2 = moved_K5[:, 2:4] - moved_K5[:, :2] + 1
    low_K2 = moved_K5[:, :2] + amounts_K4[:, :2] * size_K2
    high_K2 = low_K2 + (size_K2 + amounts_K4[:, 2:] * size_K2) - 1
    moved_K5[used_K, :2] = low_K2[used_K]
    moved_K5[used_K, 2:4] = high_K2[used_K]
    return moved_K5


def clipped(boxes_K5: Boxes, crop: Crop) -> Boxes:
    """What a crop shows of boxes, in its coordinates; all of the crop (id 1) where it shows none."""
    kept_K5 = boxes_K5[overlapping(boxes_K5, crop.corners)]
    if not len(kept_K5):
        return whole_crop(crop)
    x1, y1, x2, y2 = crop.corners
    low = np.array([x1, y1, x1, y1], dtype=np.float64)
    kept_K5[:, :2] = np.maximum(kept_K5[:, :2], low[:2])
    kept_K5[:, 2:4] = np.minimum(kept_K5[:, 2:4], [x2, y2])
    kept_K5[:, :4] -= low
    return kept_K5


def whole_crop(crop: Crop) -> Boxes:
    """One box, id 1, that is the whole crop, in its coordinates."""
    return np.array([[0, 0, crop.width - 1, crop.height - 1, 1]], dtype=np.float64)


def common_ids(first_K5: Boxes, second_K5: Boxes) -> NDArray[np.float64]:
    """Ids that both lists have, in the order of the first."""
    ids_K = first_K5[:, 4]
    return ids_K[np.isin(ids_K, second_K5[:, 4])]


def normalised(boxes_K5: Boxes, crop: Crop) -> Boxes:
    """Boxes of a crop as shares of its width and height; ids stay."""
    shares_K5 = boxes_K5.copy()
    shares_K5[:, [0, 2]] /= crop.width
    shares_K5[:, [1, 3]] /= crop.height
    return shares_K5


def flipped(shares_K5: Boxes) -> Boxes:
    """Normalised boxes of the mirrored view."""
    mirrored_K5 = shares_K5.copy()
    mirrored_K5[:, 0] = 1 - shares_K5[:, 2]
    mirrored_K5[:, 2] = 1 - shares_K5[:, 0]
    return mirrored_K5
