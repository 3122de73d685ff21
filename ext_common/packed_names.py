"""Many names in one block of bytes: a million of them cost little, and forked workers share them.

Legend: M names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ext_common.data.lazy_sequence import LazySequence


class PackedNames(LazySequence[str]):
    """M names, decoded when they are asked for.

    Args:
        blob: the names one after the other, as :func:`encoded`; bytes, or uint8 that may be mapped.
        ends_M: int64, where each name ends in it.
    """

    def __init__(self, blob: bytes | NDArray[np.uint8], ends_M: NDArray[np.int64]) -> None:
        self.blob = blob
        self.ends_M = ends_M

    @classmethod
    def of(cls, names: Sequence[str]) -> PackedNames:
        """Pack names."""
        packed = [encoded(name) for name in names]
        return cls(b"".join(packed), np.cumsum([len(name) for name in packed], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends_M)

    def element(self, place: int) -> str:
        """The name at ``place``."""
        return self.key(place).decode("utf-8", "surrogateescape")

    def key(self, place: int) -> bytes:
        """The same as :func:`encoded` has it."""
        start = int(self.ends_M[place - 1]) if place else 0
        return bytes(self.blob[start : int(self.ends_M[place])])


def encoded(name: str) -> bytes:
    """UTF-8; names of files need not be that, so what is not comes back as it was."""
    return name.encode("utf-8", "surrogateescape")
