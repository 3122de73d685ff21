"""Labels of many images in two arrays, where lists of lists would take ten times the memory.

Legend: N images, L labels of all of them, M chosen images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelTable:
    """The labels of image n are ``values_L[starts_N1[n] : starts_N1[n + 1]]``.

    Args:
        starts_N1: int64 [N + 1], not falling, beginning with 0.
        values_L: integers.
    """

    starts_N1: NDArray[np.int64]
    values_L: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, labels: Iterable[Iterable[int]]) -> LabelTable:
        """From one list per image."""
        lists = [list(found) for found in labels]
        starts_N1 = row_starts([len(found) for found in lists])
        values = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=starts_N1[-1])
        return cls(starts_N1, values)

    @classmethod
    def joined(cls, tables: Sequence[LabelTable]) -> LabelTable:
        """Several tables, one below the other."""
        starts_N1 = row_starts(np.concatenate([table.counts_N for table in tables]))
        return cls(starts_N1, np.concatenate([table.values_L for table in tables]))

    def __len__(self) -> int:
        return len(self.starts_N1) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """One list per image."""
        for start, end in zip(
            self.starts_N1[:-1].tolist(), self.starts_N1[1:].tolist(), strict=True
        ):
            yield self.values_L[start:end].tolist()

    @property
    def counts_N(self) -> NDArray[np.int64]:
        """int64 [N]: labels of each image."""
        return np.diff(self.starts_N1)

    @property
    def owners_L(self) -> NDArray[np.int64]:
        """int64 [L]: the image of each label."""
        return np.repeat(np.arange(len(self)), self.counts_N)

    def rows(self, places_M: NDArray[np.integer[Any]]) -> LabelTable:
        """The table of some images, in the given order."""
        if len(places_M) == len(self) and (places_M == np.arange(len(self))).all():
            return self
        counts_M = self.counts_N[places_M]
        starts_M1 = row_starts(counts_M)
        # each value's place: its row's start here, its row's start there, its place in the row
        shifts_M = self.starts_N1[:-1][places_M] - starts_M1[:-1]
        places_L = np.arange(starts_M1[-1]) + np.repeat(shifts_M, counts_M)
        return LabelTable(starts_M1, self.values_L[places_L])


def row_starts(counts_N: NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.int64]:
    """int64 [N + 1]: where each of N rows begins that lie one after the other, and their end.

    Args:
        counts_N: elements of each row.
    """
    starts_N1 = np.zeros(len(counts_N) + 1, dtype=np.int64)
    np.cumsum(counts_N, out=starts_N1[1:])
    return starts_N1
