"""Local binary patterns of 8 points at radius 1, equal to scikit-image's and several times faster.

A point beside the pixel is that pixel; a diagonal point lies in the square that the pixel makes
with three neighbours and is interpolated. With differences to the pixel, s the sum of the two
neighbours that share a side with it and d the far corner, the point is at least as bright where
``(1 - x) s + x d >= 0``, x = 0.70711: whole numbers decide. Only where both are 0 does rounding,
which then is repeated as scikit-image does it.

Legend: H, W rows and columns of one channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# (rows down, columns right) in the order of the bits
_POINTS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
_DIAGONAL = 0.70711  # scikit-image rounds to five places
_FAR, _NEAR = 70711, 29289  # of 100,000
_BAND = 64  # rows


def binary_patterns(channel_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W]: bit n says that point n is at least as bright as the pixel; outside is 0."""
    height, width = channel_HW.shape
    # 16 bits hold differences and their sums, and a band of rows stays in the cache
    padded = np.zeros((height + 2, width + 2), dtype=np.int16)
    padded[1:-1, 1:-1] = channel_HW
    pattern_HW = np.empty((height, width), dtype=np.uint8)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        pattern_HW[rows] = _of_band(padded[top : rows.stop + 2], top)
    return pattern_HW


def _of_band(padded: NDArray[np.int16], first: int) -> NDArray[np.uint8]:
    """The patterns of rows, from number ``first``, inside a frame of one pixel."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    centre_HW = padded[1:-1, 1:-1]

    def moved(down: int, right: int) -> NDArray[np.int16]:
        return padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    difference = {point: moved(*point) - centre_HW for point in _POINTS}
    pattern_HW = np.zeros((height, width), dtype=np.uint8)
    for bit, (down, right) in enumerate(_POINTS):
        far_HW = difference[down, right]
        if not (down and right):
            brighter = far_HW >= 0
        else:
            sides_HW = difference[down, 0] + difference[0, right]
            weighed_HW = np.multiply(sides_HW, _NEAR, dtype=np.int32)
            weighed_HW += np.multiply(far_HW, _FAR, dtype=np.int32)
            brighter = weighed_HW > 0
            places = np.flatnonzero(weighed_HW == 0)
            if len(places):
                brighter.ravel()[places] = _interpolated(padded, width, places, first, down, right)
        pattern_HW |= brighter.view(np.uint8) << np.uint8(bit)
    return pattern_HW


def _interpolated(
    padded: NDArray[np.int16],
    width: int,
    places_P: NDArray[np.int64],
    first: int,
    down: int,
    right: int,
) -> NDArray[np.bool_]:
    """Whether the rounded interpolation is at least the pixel, in scikit-image's order of steps."""
    row_P, column_P = np.divmod(places_P, width)
    # rounding depends on the number of the row in the image
    at_row_P, at_column_P = row_P + first + down * _DIAGONAL, column_P + right * _DIAGONAL
    top_P, left_P = np.floor(at_row_P), np.floor(at_column_P)
    low_P, across_P = at_row_P - top_P, at_column_P - left_P
    # the frame of zeros moves everything by one
    stride = padded.shape[1]
    corner_P = (top_P.astype(np.int64) - first + 1) * stride + left_P.astype(np.int64) + 1
    flat = padded.ravel()
    upper_P = (1 - across_P) * flat[corner_P] + across_P * flat[corner_P + 1]
    corner_P += stride
    lower_P = (1 - across_P) * flat[corner_P] + across_P * flat[corner_P + 1]
    point_P = (1 - low_P) * upper_P + low_P * lower_P
    return point_P - flat[(row_P + 1) * stride + column_P + 1] >= 0
