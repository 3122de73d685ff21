"""Telling whether a file is still what it was, without reading all of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16
_BLOCKS = 64


@dataclass(frozen=True)
class SourceState:
    """State of a file.

    Args:
        size: bytes.
        mtime_ns: modification time in nanoseconds.
        digest: of 64 blocks of 64 KiB over the whole file, with its beginning and its end; of all
            of it up to 4 MiB.
    """

    size: int
    mtime_ns: int
    digest: str

    @classmethod
    def of(cls, path: str | Path) -> SourceState:
        """The present state.

        Raises:
            OSError: the file cannot be read.
        """
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as stream:
            found = os.fstat(stream.fileno())
            last = max(found.st_size - _BLOCK, 0)
            for place in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
                digest.update(os.pread(stream.fileno(), _BLOCK, place))
        return cls(found.st_size, found.st_mtime_ns, digest.hexdigest())

    def same_file(self, descriptor: int) -> bool:
        """Whether an open file has this size and time."""
        found = os.fstat(descriptor)
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)
