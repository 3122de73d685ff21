"""Where each file of a tar archive lies, and in which state of the archive that was so.

Legend: M members.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import DatasetError
from ext_common.images import printable
from ext_common.packed_names import PackedNames
from ext_common.tar_headers import BLOCK


@dataclass(frozen=True)
class ArchiveState:
    """What tells one state of an archive from another.

    Args:
        size: bytes.
        mtime_ns: modification time in nanoseconds.
        probes: (offset of the header block, its CRC-32) of the first and the last member.
    """

    size: int
    mtime_ns: int
    probes: tuple[tuple[int, int], ...]

    def fits(self, stream: BinaryIO) -> bool:
        """Whether an open archive is in this state."""
        found = os.fstat(stream.fileno())
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns) and all(
            zlib.crc32(os.pread(stream.fileno(), BLOCK, offset)) == check
            for offset, check in self.probes
        )


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the M files of an archive lie, in the order of the archive.

    Args:
        names: as stored, without a leading "./"; each once.
        data_M: int64, offset of the content in bytes.
        sizes_M: int64, length of the content in bytes.
        checks_M: uint32, CRC-32 of the header block in front of the content.
        state: the archive that this was read from.
        cut_at: offset from which on the archive is missing; None for a complete one.
    """

    names: PackedNames
    data_M: NDArray[np.int64]
    sizes_M: NDArray[np.int64]
    checks_M: NDArray[np.uint32]
    state: ArchiveState
    cut_at: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    def place(self, member: int, stream: BinaryIO) -> tuple[int, int, int]:
        """(offset, length, CRC-32 of the header) of a member; ``stream`` is not needed."""
        return int(self.data_M[member]), int(self.sizes_M[member]), int(self.checks_M[member])

    @cached_property
    def by_name(self) -> dict[str, int]:
        """Number of a member by its name."""
        return {name: member for member, name in enumerate(self.names)}


@contextmanager
def opened(tar: str | Path) -> Iterator[BinaryIO]:
    """An archive, open for reading without a buffer.

    Raises:
        DatasetError: no such file, or one that cannot be read.
    """
    try:
        # opening a pipe would wait for a writer
        if not Path(tar).is_file():
            raise DatasetError("no such file", where=printable(tar), fix="check the path")
        stream = open(tar, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise DatasetError(
            f"the archive cannot be read: {error.strerror}", where=printable(tar)
        ) from error
    with stream:
        yield stream
