"""The resize rule of pretraining (specification 3.5), which is not detectron2's.

Shapes: H, W rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ext_common.errors import ConfigError


def resized_size(width: int, height: int, *, short: int, longest: int | None) -> tuple[int, int]:
    """(width, height) behind the resize.

    The shorter side becomes ``short`` and the longer one follows, cut to whole pixels; where that
    is more than ``longest``, the longer side becomes ``longest`` and the shorter one follows from
    the cut sizes. An image whose shorter side fits already stays as it is, however long the other.
    """
    small, large = sorted((width, height))
    if small == short:
        return width, height
    new_small, new_large = short, int(short * large / small)
    if longest is not None and new_large > longest:
        new_small, new_large = int(longest * short / new_large), longest
    new_small = max(new_small, 1)  # a line of one pixel would vanish
    return (new_small, new_large) if width <= height else (new_large, new_small)


class ShortSideResize:
    """Resizes uint8 images by :func:`resized_size` with one of Pillow's filters.

    Args:
        short: shorter side, pixels (``AUG.TRAIN.IMAGE_SIZE``).
        longest: largest longer side, pixels (``AUG.TRAIN.MAX_SIZE``); None = no limit.
        interpolation: Pillow's number of the filter; 3 = bicubic (``AUG.INTERPOLATION``).

    Raises:
        ConfigError: sizes below 1, or a filter that Pillow does not have.
    """

    def __init__(self, short: int, longest: int | None = None, interpolation: int = 3) -> None:
        if short < 1 or (longest is not None and longest < short):
            raise ConfigError(
                f"{short} and at most {longest} pixels are no sizes",
                where="AUG.TRAIN.IMAGE_SIZE, MAX_SIZE",
                fix="such as [800] and 1333",
            )
        filters = {int(f): f for f in Image.Resampling}
        if interpolation not in filters:
            raise ConfigError(
                f"{interpolation} is no filter of Pillow",
                where="AUG.INTERPOLATION",
                fix=f"one of {sorted(filters)}; 3 is bicubic",
            )
        self.short = short
        self.longest = longest
        self._filter = filters[interpolation]

    def __call__(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The resized image, uint8 [H, W, 3]."""
        height, width = image_HWC.shape[:2]
        size = resized_size(width, height, short=self.short, longest=self.longest)
        if size == (width, height):
            return image_HWC
        return np.asarray(Image.fromarray(image_HWC).resize(size, self._filter))
