"""Cutout in boxes: a square of each box is set to zero (specification 2.8).

The released code stops with an error here; this is its intent: the boxes are those of the view as it
is, flipped or not.

Legend: K boxes, H, W of the view.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from soco_ext.data.draws import Draws
from soco_ext.data.view_spec import CutoutSpec


def cut_out(
    image_CHW: NDArray[np.float32], shares_K5: NDArray[np.floating], spec: CutoutSpec, draws: Draws
) -> None:
    """Zero squares of a normalised view in place.

    Args:
        image_CHW: the view.
        shares_K5: its normalised boxes.
        spec: chance of each box, and the range of the square's share of the box.
        draws: for each box its chance; where it is cut, the share, and the centre across and down.
    """
    height, width = image_CHW.shape[1:]
    scale = np.array([width, height, width, height])
    for x1, y1, x2, y2 in np.round(shares_K5[:, :4] * scale).astype(int).tolist():
        if draws.uniform(0.0, 1.0) >= spec.chance:
            continue
        area = draws.uniform(*spec.area) * (x2 - x1 + 1) * (y2 - y1 + 1)
        half = round(math.sqrt(area)) // 2
        across, down = draws.integer(x1, x2), draws.integer(y1, y2)
        rows = slice(max(down - half, 0), min(down + half + 1, height))
        columns = slice(max(across - half, 0), min(across + half + 1, width))
        image_CHW[:, rows, columns] = 0.0
