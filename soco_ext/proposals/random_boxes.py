"""Random boxes instead of proposals (specification 1.4; the published ablation's intent).

The released generator puts a box between its centre and its lower right corner alone and draws
aspects uniformly; here the box lies around its centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soco_ext.proposals.filtering import MIN_SIDE


@dataclass(frozen=True)
class RandomBoxes:
    """How random boxes are drawn.

    Args:
        tries: a box that does not fit is left out, so this is the largest number of boxes.
        aspect: width : height is uniform in 1 / aspect to aspect.
        sizes: sqrt(box area) / sqrt(image area) is uniform in this range.
    """

    tries: int = 32
    aspect: float = 3.0
    sizes: tuple[float, float] = (0.3, 0.8)

    def draw(self, size_hw: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float32]:
        """float32 [K, 4] x1, y1, x2, y2 (last pixel inside) in an image of (height, width)."""
        height, width = size_hw
        side_T = generator.uniform(*self.sizes, self.tries) * np.sqrt(height * width)
        aspect_T = generator.uniform(1 / self.aspect, self.aspect, self.tries)
        places_T2 = generator.random((self.tries, 2))
        wide_T = np.round(side_T * np.sqrt(aspect_T))
        high_T = np.round(side_T / np.sqrt(aspect_T))
        fits_T = (
            (wide_T >= MIN_SIDE) & (high_T >= MIN_SIDE) & (wide_T <= width) & (high_T <= height)
        )
        left_T = np.floor(places_T2[:, 0] * (width - wide_T + 1))
        top_T = np.floor(places_T2[:, 1] * (height - high_T + 1))
        boxes_T4 = np.stack([left_T, top_T, left_T + wide_T - 1, top_T + high_T - 1], axis=1)
        return boxes_T4[fits_T].astype(np.float32)
