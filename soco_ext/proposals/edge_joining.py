"""Joining pixels along sorted edges (Felzenszwalb and Huttenlocher, IJCV 2004), compiled with Numba.

Every pixel has edges to its eight neighbours. Their numbers go through four groups, each row by row:
to the right, down, down and right, and down and left.

Legend: P pixels (H rows of W), E edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call, and kept on disk where a folder can be written to."""
    try:
        kept: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache
        kept = njit(nogil=True)(function)
    return kept


@_compiled
def join_along_edges(
    order_E: NDArray[np.int64],
    cost_E: NDArray[np.float64],
    height: int,
    width: int,
    scale: float,
    min_size: int,
) -> NDArray[np.int64]:
    """The segments that the edges leave.

    A segment may be entered along an edge that costs less than its own dearest edge plus
    ``scale`` over its pixels, and both sides of an edge have to agree (section 3, equations 2 to 4).
    Then segments of less than ``min_size`` pixels are joined along the cheapest edges out.

    Args:
        order_E: edges, cheapest first; of equal ones the order matters.
        cost_E: of the edges by their numbers.
        height, width: of the image.
        scale: larger = larger segments.
        min_size: in pixels.

    Returns:
        int64 [P] segment of each pixel, numbered in the order of their first pixels.
    """
    pixels = height * width
    parent_P = np.arange(pixels, dtype=np.int32)
    size_P = np.ones(pixels, dtype=np.int32)
    limit_P = np.full(pixels, scale)
    for edge in order_E:
        first, second = _ends(edge, height, width)
        first, second = _root(parent_P, first), _root(parent_P, second)
        cost = cost_E[edge]
        if first != second and cost < limit_P[first] and cost < limit_P[second]:
            root = _join(parent_P, size_P, first, second)
            limit_P[root] = cost + scale / size_P[root]
    for edge in order_E:
        first, second = _ends(edge, height, width)
        first, second = _root(parent_P, first), _root(parent_P, second)
        if first != second and (size_P[first] < min_size or size_P[second] < min_size):
            _join(parent_P, size_P, first, second)
    return _numbered(parent_P)


@_compiled
def _ends(edge: int, height: int, width: int) -> tuple[int, int]:
    """The two pixels of an edge."""
    rights, downs = height * (width - 1), (height - 1) * width
    if edge < rights:
        pixel = edge + edge // (width - 1)
        return pixel, pixel + 1
    edge -= rights
    if edge < downs:
        return edge, edge + width
    edge -= downs
    diagonals = (height - 1) * (width - 1)
    if edge < diagonals:
        pixel = edge + edge // (width - 1)
        return pixel, pixel + width + 1
    edge -= diagonals
    pixel = edge + edge // (width - 1)
    return pixel + 1, pixel + width


@_compiled
def _root(parent_P: NDArray[np.int32], pixel: int) -> int:
    """The first pixel of a segment; the way to it is halved."""
    while parent_P[pixel] != pixel:
        parent_P[pixel] = parent_P[parent_P[pixel]]
        pixel = parent_P[pixel]
    return pixel


@_compiled
def _join(parent_P: NDArray[np.int32], size_P: NDArray[np.int32], first: int, second: int) -> int:
    """Make one segment of two roots; the lower pixel stays root."""
    root, other = min(first, second), max(first, second)
    parent_P[other] = root
    size_P[root] += size_P[other]
    return root


@_compiled
def _numbered(parent_P: NDArray[np.int32]) -> NDArray[np.int64]:
    """Segments by the order of their roots, which are their first pixels."""
    label_P = np.empty(len(parent_P), dtype=np.int64)
    count = 0
    for pixel in range(len(parent_P)):
        root = _root(parent_P, pixel)
        if root == pixel:
            label_P[pixel] = count
            count += 1
        else:
            label_P[pixel] = label_P[root]
    return label_P
