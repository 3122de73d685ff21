"""Merging the regions of a segmentation, most alike first: selective search's second half.

Legend: R initial regions, M merges; T = R + M.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soco_ext.proposals.regions import Regions


@dataclass(frozen=True)
class Merged:
    """All regions in the order in which they came to be.

    Args:
        boxes_T4: int64 x1, y1, x2, y2, first and last column and row.
        sizes_T: int64 pixels.
    """

    boxes_T4: NDArray[np.int64]
    sizes_T: NDArray[np.int64]

    @property
    def rects_T4(self) -> NDArray[np.int64]:
        """x, y, width, height as the authors have them: one pixel short in width and height."""
        rects_T4 = self.boxes_T4.copy()
        rects_T4[:, 2:] -= rects_T4[:, :2]
        return rects_T4


def merge_regions(regions: Regions) -> Merged:
    """Join the two most similar neighbours until no neighbours are left (specification 1.1).

    The result is exactly that of sorting all pairs before each merge: of equally similar pairs the
    one that was added last comes first. A heap gives the same order, and forgotten pairs are left
    in it until they come up.
    """
    return _Merger(regions).run()


def neighbours(boxes_R4: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (earlier, later) where a corner of the later box lies strictly inside the earlier one.

    Returns:
        int64 numbers of the earlier and of the later regions, in order of both.
    """
    x1, y1, x2, y2 = boxes_R4.T
    inside = np.zeros((len(boxes_R4), len(boxes_R4)), dtype=bool)
    in_x = [(x1[:, None] < x) & (x < x2[:, None]) for x in (x1, x2)]
    in_y = [(y1[:, None] < y) & (y < y2[:, None]) for y in (y1, y2)]
    for xs in in_x:
        for ys in in_y:
            inside |= xs & ys
    first, second = np.nonzero(np.triu(inside, 1))
    return first, second


class _Merger:
    """The state of one run; arrays have room for all merges that can come."""

    def __init__(self, regions: Regions) -> None:
        count = len(regions.sizes_R)
        room = max(2 * count - 1, 0)
        self.pixels = regions.pixels
        self.used = count
        self.boxes_T4 = np.zeros((room, 4), dtype=np.int64)
        self.sizes_T = np.zeros(room, dtype=np.int64)
        # bins come first, so that a sum over them adds one after the other, as a plain loop does
        self.colours_BT = np.zeros((regions.colours_RB.shape[1], room))
        self.textures_BT = np.zeros((regions.textures_RB.shape[1], room))
        self.boxes_T4[:count] = regions.boxes_R4
        self.sizes_T[:count] = regions.sizes_R
        self.colours_BT[:, :count] = regions.colours_RB.T
        self.textures_BT[:, :count] = regions.textures_RB.T
        # regions of each living region's pairs, in the order in which the pairs were added
        self.partners: dict[int, dict[int, int]] = {number: {} for number in range(count)}
        self.heap: list[tuple[float, int, int, int]] = []
        self.added = 0

    def run(self) -> Merged:
        first_P, second_P = neighbours(self.boxes_T4[: self.used])
        self._add(first_P, second_P)
        while self.heap:
            _, serial, first, second = heapq.heappop(self.heap)
            if self.partners.get(first, {}).get(second) == -serial:
                self._merge(first, second)
        return Merged(self.boxes_T4[: self.used], self.sizes_T[: self.used])

    def _add(self, first_P: NDArray[np.int64], second_P: NDArray[np.int64]) -> None:
        similar_P = self._similarity(first_P, second_P).tolist()
        pairs = zip(similar_P, first_P.tolist(), second_P.tolist(), strict=True)
        for similar, first, second in pairs:
            self.added += 1
            self.partners[first][second] = self.added
            self.partners[second][first] = self.added
            # the heap's least is the most similar and, among equals, the last added
            heapq.heappush(self.heap, (-similar, -self.added, first, second))

    def _merge(self, first: int, second: int) -> None:
        new = self.used
        self.used += 1
        sizes = self.sizes_T
        total = sizes[first] + sizes[second]
        sizes[new] = total
        corners = self.boxes_T4[[first, second]]
        self.boxes_T4[new, :2] = corners[:, :2].min(axis=0)
        self.boxes_T4[new, 2:] = corners[:, 2:].max(axis=0)
        for histograms in (self.colours_BT, self.textures_BT):
            weighted = histograms[:, first] * sizes[first] + histograms[:, second] * sizes[second]
            histograms[:, new] = weighted / total
        serials: dict[int, int] = {}
        for gone in (first, second):
            for other, serial in self.partners.pop(gone).items():
                if other not in (first, second):
                    del self.partners[other][gone]
                    serials[other] = min(serial, serials.get(other, serial))
        self.partners[new] = {}
        others = np.array(sorted(serials, key=serials.__getitem__), dtype=np.int64)
        if len(others):
            self._add(np.full(len(others), new), others)

    def _similarity(
        self, first_P: NDArray[np.int64], second_P: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Sum of the four terms; the order of additions is kept, since ties decide."""
        together_P = self.sizes_T[first_P] + self.sizes_T[second_P]
        low_P2 = np.minimum(self.boxes_T4[first_P, :2], self.boxes_T4[second_P, :2])
        high_P2 = np.maximum(self.boxes_T4[first_P, 2:], self.boxes_T4[second_P, 2:])
        area_P = (high_P2 - low_P2).prod(axis=1)
        colour_P = _common(self.colours_BT, first_P, second_P)
        texture_P = _common(self.textures_BT, first_P, second_P)
        size_P = 1.0 - together_P / self.pixels
        fill_P = 1.0 - (area_P - together_P) / self.pixels
        return colour_P + texture_P + size_P + fill_P


def _common(
    histograms_BT: NDArray[np.float64], first_P: NDArray[np.int64], second_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Histogram intersections, bins added one after the other."""
    smaller_BP = np.minimum(histograms_BT[:, first_P], histograms_BT[:, second_P])
    if len(first_P) == 1:  # NumPy adds a single column pairwise
        return smaller_BP.cumsum(axis=0)[-1]
    # picked columns lie one behind the other, and NumPy adds pairwise along them: other sums in the
    # last bit, and other merges where similarities are equal
    return np.ascontiguousarray(smaller_BP).sum(axis=0)
