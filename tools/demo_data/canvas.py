"""A picture in the making: objects are laid one over another and stay countable.

Shapes: ``image_HW3`` RGB float32 in 0..1, ``owner_HW`` int16: which object is on top (-1: none).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .sprites import Sprite

MIN_VISIBLE_PIXELS = 30


@dataclass(frozen=True)
class Visible:
    """What can be seen of one object: its class and its visible pixels ``mask_HW``."""

    class_id: int
    mask_HW: NDArray[np.bool_]


@dataclass(frozen=True)
class _Window:
    """The part of a sprite that lies inside the picture, as slices of both."""

    rows: slice
    cols: slice
    sprite_rows: slice
    sprite_cols: slice


class Canvas:
    """Lays sprites over a background.

    Args:
        background_HW3: RGB float32 in 0..1; it is copied.
    """

    def __init__(self, background_HW3: NDArray[np.float32]) -> None:
        self._image_HW3 = background_HW3.copy()
        self._owner_HW = np.full(background_HW3.shape[:2], -1, np.int16)
        self._class_ids: list[int] = []
        self._full_areas: list[int] = []

    @property
    def image_HW3(self) -> NDArray[np.float32]:
        """The picture so far, RGB float32 in 0..1."""
        return self._image_HW3

    def extents(self) -> list[tuple[float, float, float]]:
        """Centre (x, y) and diameter in pixels of each object's visible part."""
        found = []
        for visible in self.visible():
            rows, cols = np.nonzero(visible.mask_HW)
            diameter = max(np.ptp(rows), np.ptp(cols)) + 1
            found.append((float(cols.mean()), float(rows.mean()), float(diameter)))
        return found

    def paste(self, sprite: Sprite, left: int, top: int, *, min_visible: float) -> bool:
        """Lay a sprite over the picture, unless too little of an object would be seen.

        Args:
            sprite: the object.
            left: column of the sprite's first pixel; may lie outside.
            top: row of the sprite's first pixel; may lie outside.
            min_visible: share of its own area that every object must still show.

        Returns:
            Whether it was laid down; if not, nothing changed.
        """
        window = self._window(sprite, left, top)
        if window is None:
            return False
        solid_hw = sprite.solid_HW[window.sprite_rows, window.sprite_cols]
        owner_HW = self._owner_HW.copy()
        owner_HW[window.rows, window.cols][solid_hw] = len(self._class_ids)
        areas = [*self._full_areas, int(sprite.solid_HW.sum())]
        seen = np.bincount(owner_HW[owner_HW >= 0].astype(np.int64), minlength=len(areas))
        if any(
            n < max(min_visible * a, MIN_VISIBLE_PIXELS) for n, a in zip(seen, areas, strict=True)
        ):
            return False
        self._owner_HW = owner_HW
        self._full_areas = areas
        self._class_ids.append(sprite.class_id)
        self._blend(sprite, window, left, top)
        return True

    def visible(self) -> list[Visible]:
        """The objects in the order they were laid down."""
        return [
            Visible(class_id, self._owner_HW == place)
            for place, class_id in enumerate(self._class_ids)
        ]

    def _window(self, sprite: Sprite, left: int, top: int) -> _Window | None:
        height, width = self._owner_HW.shape
        sprite_h, sprite_w = sprite.alpha_HW.shape
        row0, row1 = max(top, 0), min(top + sprite_h, height)
        col0, col1 = max(left, 0), min(left + sprite_w, width)
        if row0 >= row1 or col0 >= col1:
            return None
        return _Window(
            slice(row0, row1),
            slice(col0, col1),
            slice(row0 - top, row1 - top),
            slice(col0 - left, col1 - left),
        )

    def _blend(self, sprite: Sprite, window: _Window, left: int, top: int) -> None:
        self._cast_shadow(sprite, window, left, top)
        alpha_hw1 = sprite.alpha_HW[window.sprite_rows, window.sprite_cols, None]
        below_hw3 = self._image_HW3[window.rows, window.cols]
        above_hw3 = sprite.colour_HW3[window.sprite_rows, window.sprite_cols]
        self._image_HW3[window.rows, window.cols] = (
            below_hw3 * (1 - alpha_hw1) + above_hw3 * alpha_hw1
        )

    def _cast_shadow(self, sprite: Sprite, window: _Window, left: int, top: int) -> None:
        """Darken what lies under the sprite's lower right, softly."""
        reach = max(1, round(0.06 * max(sprite.alpha_HW.shape)))
        cover_HW = np.zeros(self._owner_HW.shape, np.float32)
        cover_HW[window.rows, window.cols] = sprite.alpha_HW[window.sprite_rows, window.sprite_cols]
        move = np.array([[1, 0, reach], [0, 1, reach]], np.float32)
        cover_HW = cv2.warpAffine(cover_HW, move, cover_HW.shape[::-1])
        cover_HW = cv2.blur(cover_HW, (2 * reach + 1, 2 * reach + 1))
        self._image_HW3 *= 1.0 - 0.45 * cover_HW[..., None]
