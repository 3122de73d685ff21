"""Ids of many records, packed: 8 bytes each where they are integers.

Legend: N records, K keys that are looked up.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 2**63 - 1


class Unusable:
    """Stands for a value that cannot be an id; equal to nothing else.

    Args:
        value: what stood in the file.
    """

    def __init__(self, value: object) -> None:
        self.text = repr(value)

    def __str__(self) -> str:
        return self.text


def as_id(value: Any) -> int | str | Unusable:
    """An id as it is compared: integers (also written 3.0) and texts; anything else is unusable."""
    if type(value) is int or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return Unusable(value)


class IdColumn:
    """A growing list of ids (:func:`as_id`)."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._mixed: list[int | str | Unusable] | None = None  # as soon as one is not an integer

    def append(self, value: Any) -> None:
        """Add what a record has as its id."""
        found = as_id(value)
        if self._mixed is None:
            if isinstance(found, int) and abs(found) <= _LARGEST:
                self._numbers.append(found)
                return
            self._mixed = list(self._numbers)
            self._numbers = array("q")
        self._mixed.append(found)

    def __len__(self) -> int:
        return len(self._numbers) if self._mixed is None else len(self._mixed)

    def __getitem__(self, place: int) -> int | str | Unusable:
        return self._numbers[place] if self._mixed is None else self._mixed[place]

    @property
    def numbers_N(self) -> NDArray[np.int64] | None:
        """int64 [N] that shares this column's memory; None where an id is not an integer."""
        if self._mixed is not None:
            return None
        return np.frombuffer(self._numbers, dtype=np.int64) if self._numbers else _EMPTY

    def of_type(self, kind: type) -> NDArray[np.bool_]:
        """bool [N]: which ids are of this type."""
        if self._mixed is None:
            return np.full(len(self), kind is int)
        return np.array([isinstance(value, kind) for value in self._mixed], dtype=bool)

    def order(self) -> NDArray[np.int64]:
        """int64 [N]: places in the order of the ids, equal ids in their own order.

        All must be integers, or all texts.
        """
        numbers_N = self.numbers_N
        if numbers_N is not None:
            if (numbers_N[1:] >= numbers_N[:-1]).all():
                return np.arange(len(numbers_N))
            return np.argsort(numbers_N, kind="stable")
        keys: list[Any] = self._mixed or []
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

    def repeated(self) -> NDArray[np.int64]:
        """Places of ids that stood before, ascending; unusable ones never do."""
        numbers_N = self.numbers_N
        if numbers_N is not None:
            order_N = self.order()
            sorted_N = numbers_N[order_N]
            return np.sort(order_N[1:][sorted_N[1:] == sorted_N[:-1]])
        seen: set[Any] = set()
        places = []
        for place, value in enumerate(self._mixed or ()):
            if value in seen:
                places.append(place)
            elif not isinstance(value, Unusable):
                seen.add(value)
        return np.array(places, dtype=np.int64)

    def find(self, keys: IdColumn) -> NDArray[np.int64]:
        """int64 [K]: where each key stands first in this column, -1 where it does not."""
        own_N, keys_K = self.numbers_N, keys.numbers_N
        if own_N is not None and keys_K is not None:
            if not len(own_N):
                return np.full(len(keys_K), -1, dtype=np.int64)
            order_N = self.order()
            sorted_N = own_N[order_N]
            near_K = np.minimum(np.searchsorted(sorted_N, keys_K), len(own_N) - 1)
            return np.where(sorted_N[near_K] == keys_K, order_N[near_K], -1)
        places: dict[Any, int] = {}
        for place in range(len(self)):
            places.setdefault(self[place], place)
        found = (places.get(keys[place], -1) for place in range(len(keys)))
        return np.fromiter(found, dtype=np.int64, count=len(keys))


_EMPTY = np.empty(0, dtype=np.int64)
