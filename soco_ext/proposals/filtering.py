"""Which regions become proposals (specification 1.3).

Legend: M rectangles; ``rects_M4`` x, y, width, height.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError

MIN_SIDE = 32
"""Pixels; smaller boxes are never kept."""

PUBLISHED_STRATEGY = "ratio3size0308post"
"""What the authors trained with."""

_LARGEST = 1e9  # pixels, far above any picture
_GRAMMAR = re.compile(r"(?:none|(?:ratio([1-9]))?(?:size(\d\d)(\d\d)?)?)(post)?")


@dataclass(frozen=True)
class BoxFilter:
    """A filter strategy; all bounds are inclusive.

    Args:
        text: how it was written.
        ratio: width : height is between 1 / ratio and ratio; None = any.
        sizes: range of sqrt(box area) / sqrt(image area); None = any.
        relaxed: where nothing is left, go by ratio 3 alone, and then by the side of 32 pixels alone.
    """

    text: str
    ratio: float | None = None
    sizes: tuple[float, float] | None = None
    relaxed: bool = False

    @classmethod
    def parse(cls, text: str) -> BoxFilter:
        """A strategy such as none, ratio3, size03, ratio3size0308 or ratio3size0308post.

        Raises:
            ConfigError: written otherwise, or a smallest size above the largest.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or text in ("", "post"):
            raise ConfigError(
                f"unknown filter strategy {text!r}",
                fix="none, ratioR, sizeAB or ratioRsizeABCD, optionally with post behind it; "
                f"the published one is {PUBLISHED_STRATEGY}",
            )
        ratio, low, high, relaxed = found.groups()
        sizes = (int(low) / 10, int(high) / 10 if high else 1.0) if low else None
        if sizes is not None and sizes[0] > sizes[1]:
            raise ConfigError(f"no box is in {sizes[0]} to {sizes[1]}", where=f"strategy {text}")
        return cls(text, float(ratio) if ratio else None, sizes, relaxed is not None)

    def keep(self, rects_M4: NDArray[np.number], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """bool [M]: which rectangles of an image of (height, width) are kept."""
        kept_M = self._strict(rects_M4, size_hw)
        if self.relaxed and not kept_M.any():
            kept_M = BoxFilter("", 3.0)._strict(rects_M4, size_hw)
            if not kept_M.any():
                kept_M = BoxFilter("")._strict(rects_M4, size_hw)
        return kept_M

    def _strict(self, rects_M4: NDArray[np.number], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        width_M = rects_M4[:, 2].astype(np.float64)
        height_M = rects_M4[:, 3].astype(np.float64)
        kept_M = (width_M >= MIN_SIDE) & (height_M >= MIN_SIDE)
        if self.ratio is not None:
            aspect_M = width_M / np.where(kept_M, height_M, 1.0)
            kept_M &= (aspect_M >= 1.0 / self.ratio) & (aspect_M <= self.ratio)
        if self.sizes is not None:
            share_M = np.sqrt(np.maximum(width_M * height_M, 0)) / np.sqrt(size_hw[0] * size_hw[1])
            kept_M &= (share_M >= self.sizes[0]) & (share_M <= self.sizes[1])
        return kept_M


def is_rect(value: object) -> bool:
    """Whether a value of a JSON file is x, y, width, height in numbers that pictures can have."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and set(map(type, value)) <= {int, float}
        and max(map(abs, value)) < _LARGEST
    )


def rects_to_boxes(rects_M4: NDArray[np.number]) -> NDArray[np.float64]:
    """x1, y1, x2 = x + width - 1, y2 = y + height - 1 (specification 1.4)."""
    boxes_M4 = np.array(rects_M4, dtype=np.float64).reshape(-1, 4)
    boxes_M4[:, 2:] += boxes_M4[:, :2] - 1
    return boxes_M4


def boxes_to_rects(boxes_M4: NDArray[np.number]) -> NDArray[np.float64]:
    """The reverse of :func:`rects_to_boxes`."""
    rects_M4 = np.array(boxes_M4, dtype=np.float64).reshape(-1, 4)
    rects_M4[:, 2:] += 1 - rects_M4[:, :2]
    return rects_M4
