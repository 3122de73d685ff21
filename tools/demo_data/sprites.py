"""One object as a patch with transparency.

Shapes: ``colour_HW3`` RGB float32 in 0..1, ``alpha_HW`` float32 in 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .classes import DemoClass
from .fills import random_fill
from .shapes import Points, random_outline

OVERSAMPLING = 4  # the outline is filled on a grid this much finer, then averaged
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Sprite:
    """One object, cut out.

    Attributes:
        class_id: category id.
        colour_HW3: RGB float32 in 0..1.
        alpha_HW: coverage of each pixel, 0..1 (1 inside, between on the edge).
    """

    class_id: int
    colour_HW3: NDArray[np.float32]
    alpha_HW: NDArray[np.float32]

    @property
    def solid_HW(self) -> NDArray[np.bool_]:
        """The pixels that count as the object: at least half covered."""
        return self.alpha_HW >= 0.5


def random_sprite(kind: DemoClass, size: float, rng: np.random.Generator) -> Sprite:
    """Draw one object of a class.

    Args:
        kind: the class.
        size: side in pixels of the unit box that the shape is drawn in.
        rng: source of all randomness.
    """
    polygons = random_outline(kind.shape, size, rng)
    low = np.min([points_P2.min(axis=0) for points_P2 in polygons], axis=0)
    high = np.max([points_P2.max(axis=0) for points_P2 in polygons], axis=0)
    # a random part of a pixel: edges fall everywhere between the pixels
    shift = 1.0 - low + rng.uniform(0.0, 1.0, 2)
    width, height = np.ceil(high + shift + 1.0).astype(int)
    fine_HW = _fill([points_P2 + shift for points_P2 in polygons], (int(height), int(width)))
    alpha_HW = _shrink(fine_HW)
    colour_HW3 = random_fill(kind.attribute, alpha_HW.shape, size, rng)
    # a darker rim, as thick as the object is large
    thickness = max(1, round(size * OVERSAMPLING * rng.uniform(0.015, 0.03)))
    inner_HW = _shrink(cv2.erode(fine_HW, np.ones((2 * thickness + 1,) * 2, np.uint8)))
    rim_HW = rng.uniform(0.25, 0.55) * (alpha_HW - inner_HW)
    return Sprite(kind.id, np.clip(colour_HW3 * (1.0 - rim_HW[..., None]), 0.0, 1.0), alpha_HW)


def _fill(polygons: list[Points], shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Mask (0 or 255) on the fine grid; a second polygon cuts a hole."""
    fine_HW = np.zeros((shape_hw[0] * OVERSAMPLING, shape_hw[1] * OVERSAMPLING), np.uint8)
    # OpenCV's integer coordinates are pixel centres
    scale = 2**_SUBPIXEL_BITS
    points = [
        np.round((points_P2 * OVERSAMPLING - 0.5) * scale).astype(np.int32)
        for points_P2 in polygons
    ]
    cv2.fillPoly(fine_HW, points, 255, lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    return fine_HW


def _shrink(fine_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = fine_HW.shape[0] // OVERSAMPLING, fine_HW.shape[1] // OVERSAMPLING
    small_HW = cv2.resize(fine_HW, (width, height), interpolation=cv2.INTER_AREA)
    return small_HW.astype(np.float32) / np.float32(255)
