"""Crops of an image: which part, and its pixels (specification 2.1, 2.2).

Coordinates are whole pixels; a range includes its last pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from soco_ext.data.draws import Draws

_ATTEMPTS = 10


class Crop(NamedTuple):
    """A part of an image; the order is the authors'."""

    top: int
    left: int
    height: int
    width: int
    image_height: int
    image_width: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2, the last pixel included."""
        return (
            self.left,
            self.top,
            self.left + self.width - 1,
            self.top + self.height - 1,
        )

    def flipped(self) -> Crop:
        """Where the crop lies in the mirrored image."""
        return self._replace(left=self.image_width - self.width - self.left)


def whole_image(size_hw: tuple[int, int]) -> Crop:
    """All of an image of (height, width)."""
    return Crop(0, 0, *size_hw, *size_hw)


def draw_crop(
    size_hw: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    draws: Draws,
) -> Crop:
    """A random crop by torchvision's classic rule.

    Args:
        size_hw: height and width of the image.
        scale: range of the crop's share of the area.
        aspect: range of width : height, uniform in its logarithm.
        draws: two numbers for each of up to ten attempts, then top and left of the first that fits.
    """
    height, width = size_hw
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_ATTEMPTS):
        area = draws.uniform(*scale) * height * width
        ratio = math.exp(draws.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = draws.integer(0, height - tall)
            left = draws.integer(0, width - wide)
            return Crop(top, left, tall, wide, height, width)
    return central_crop(size_hw, aspect)


def central_crop(size_hw: tuple[int, int], aspect: tuple[float, float]) -> Crop:
    """The largest central part whose aspect is allowed."""
    height, width = size_hw
    tall, wide = height, width
    if width / height < aspect[0]:
        # a picture of one column must keep a row
        tall = max(round(width / aspect[0]), 1)
    elif width / height > aspect[1]:
        wide = max(round(height * aspect[1]), 1)
    return Crop((height - tall) // 2, (width - wide) // 2, tall, wide, height, width)


def shared_part(first: Crop, second: Crop) -> tuple[int, int, int, int] | None:
    """x1, y1, x2, y2 that two crops share; None where they touch at most."""
    a, b = first.corners, second.corners
    if not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]):
        return None
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def resized_crop(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """The pixels of a crop, resized (bilinear) to a square of ``size`` pixels."""
    left, top, right, bottom = crop.corners
    # first cut: resizing a part of the image itself would look at pixels outside of it
    part = image.crop((left, top, right + 1, bottom + 1))
    return part.resize((size, size), Image.Resampling.BILINEAR)
