"""A sequence whose elements are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class LazySequence(Sequence[T]):
    """Indices, negative indices and slices, from one method for an element."""

    @abstractmethod
    def element(self, place: int) -> T:
        """The element at 0 <= ``place`` < length."""

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        """An element; a list of them for a slice."""
        if isinstance(place, slice):
            return [self.element(number) for number in range(len(self))[place]]
        return self.element(range(len(self))[place])
