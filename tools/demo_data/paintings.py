"""Painted backgrounds: as many different ones as are wanted, where four photographs are too few.

A network that learns without labels from four photographs learns to tell those from one another.
Shapes: ``image_HW3`` RGB.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 320
_COARSEST, _OCTAVES = 2, 6  # cells along a side, doubled from octave to octave
_MAX_PATCHES = 9


def paint(count: int, seed: int) -> tuple[NDArray[np.uint8], ...]:
    """Pictures of clouds, grain and patches with edges, each in colours of its own.

    Args:
        count: how many.
        seed: of all of them; picture n is the same in every longer list.

    Returns:
        ``image_HW3`` uint8, ``SIDE`` pixels high and wide.
    """
    return tuple(_picture(np.random.default_rng([seed, number])) for number in range(count))


def _picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    roughness = rng.uniform(0.35, 0.8)
    clouds_HW3 = np.zeros((SIDE, SIDE, 3), np.float32)
    for octave in range(_OCTAVES):
        cells = _COARSEST * 2**octave
        noise = rng.normal(size=(cells, cells, 3)).astype(np.float32)
        noise = noise.mean(axis=2, keepdims=True) * 1.2 + noise * 0.4  # colours vary less
        clouds_HW3 += roughness**octave * cv2.resize(
            noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC
        )
    image_HW3 = rng.uniform(0.1, 0.9, 3) + rng.uniform(0.05, 0.3) * clouds_HW3
    for _ in range(int(rng.integers(_MAX_PATCHES + 1))):
        _add_patch(image_HW3, rng)
    return (np.clip(image_HW3, 0, 1) * 255).round().astype(np.uint8)


def _add_patch(image_HW3: NDArray[np.floating], rng: np.random.Generator) -> None:
    """Shift the colours of a polygon."""
    centre = rng.uniform(0, SIDE, 2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    radii = rng.uniform(0.1, 0.5) * SIDE * rng.uniform(0.5, 1, len(angles))
    corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask_HW = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask_HW, [corners.round().astype(np.int32)], 1, lineType=cv2.LINE_AA)
    image_HW3[mask_HW > 0] += rng.normal(0, 0.2, 3)
