"""Crops of the real photographs that scikit-image ships.

Training and validation pictures take their crops from different parts of the photographs, so a
model cannot profit from remembering a background. Shapes: ``image_HW3`` RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")  # in the wheel, nothing is downloaded
TRAIN_SHARE = 0.6  # left part of a photograph; the rest is for validation
_MIN_CROP = 100
_MAX_CROP = 220


def load_photographs() -> tuple[NDArray[np.uint8], ...]:
    """Read the photographs: RGB uint8, 300 to 512 px high."""
    from skimage import data  # here, because only the demo needs scikit-image

    return tuple(np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in PHOTOGRAPHS)


def random_background(
    photographs: tuple[NDArray[np.uint8], ...],
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    *,
    validation: bool,
) -> NDArray[np.float32]:
    """A crop of a photograph at the wanted size.

    Args:
        photographs: as :func:`load_photographs` returns them.
        size_hw: height and width of the result in pixels.
        rng: source of all randomness.
        validation: crop from the part that training pictures never see.

    Returns:
        ``image_HW3`` RGB float32 in 0..1.
    """
    photo = photographs[rng.integers(len(photographs))]
    border = round(photo.shape[1] * TRAIN_SHARE)
    photo = photo[:, border:] if validation else photo[:, :border]
    height, width = size_hw
    largest = min(photo.shape[0] / height, photo.shape[1] / width)
    longest = max(size_hw)
    scale = min(rng.uniform(_MIN_CROP, _MAX_CROP) / longest, largest)
    crop_h, crop_w = int(height * scale), int(width * scale)
    top = rng.integers(photo.shape[0] - crop_h + 1)
    left = rng.integers(photo.shape[1] - crop_w + 1)
    crop = photo[top : top + crop_h, left : left + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=cv2.INTER_LINEAR)
    return crop.astype(np.float32) / np.float32(255)
