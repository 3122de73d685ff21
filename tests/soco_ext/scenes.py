"""Small pictures with shapes, for the tests of SoCo's data side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(seed: int = 0, size_hw: tuple[int, int] = (60, 80)) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: rectangles of different colours on a background, with some noise."""
    draw = np.random.default_rng(seed)
    height, width = size_hw
    pixels = np.zeros((height, width, 3), dtype=np.int64) + draw.integers(0, 256, 3)
    for _ in range(5):
        top, left = int(draw.integers(0, height)), int(draw.integers(0, width))
        tall, wide = (int(draw.integers(1, max(side // 2, 2))) for side in size_hw)
        pixels[top : top + tall, left : left + wide] = draw.integers(0, 256, 3)
    noise = draw.integers(-3, 4, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def write_scenes(
    folder: Path, count: int, *, size_hw: tuple[int, int] = (60, 80), classes: int = 2
) -> list[str]:
    """An ImageNet-like tree; returns the relative paths."""
    names = []
    for number in range(count):
        name = f"n{number % classes:04d}/{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(number, size_hw)).save(folder / name)
        names.append(name)
    return sorted(names)
