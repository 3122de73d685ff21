"""The index layout that Detic's authors published (specification 6.4): two arrays per archive.

``<basename>_names.npy`` has the names of the M members, ``<basename>_offsets.npy`` where each
starts, in blocks of 512 bytes, and as one more entry where the archive ends. A start is that of the
first header; the length of the content stands in the header, which is read with every member.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import DatasetError
from ext_common.images import printable
from ext_common.tar_headers import BLOCK, CutOffError, DamagedHeaderError, read_entry

_FIX = "remove the index files: the archive is then scanned"


class PublishedIndex:
    """Member table of one archive.

    Args:
        names_file: array of M texts.
        offsets_file: integer array [M + 1].

    Raises:
        DatasetError: unreadable arrays, or arrays that do not fit one another.
    """

    def __init__(self, names_file: Path, offsets_file: Path) -> None:
        self.where = str(offsets_file)
        names_M = _array(names_file, "U")
        self.offsets_B: NDArray[np.int64] = _array(offsets_file, "iu").astype(np.int64)
        if len(self.offsets_B) != len(names_M) + 1 or (np.diff(self.offsets_B) < 0).any():
            raise DatasetError(
                f"{len(self.offsets_B)} offsets for {len(names_M)} names; "
                "one more than names is needed, in ascending order",
                where=printable(self.where),
                fix=_FIX,
            )
        self.names: Sequence[str] = names_M.tolist()

    def __len__(self) -> int:
        return len(self.names)

    def place(self, member: int, stream: BinaryIO) -> tuple[int, int, int]:
        """(offset, length, CRC-32 of the header) of a member, from its header in the archive.

        Raises:
            DatasetError: another member, or none, lies there.
        """
        start, end = (int(block) * BLOCK for block in self.offsets_B[member : member + 2])
        try:
            entry = read_entry(lambda at, length: os.pread(stream.fileno(), length, at), start)
        except (CutOffError, DamagedHeaderError):
            entry = None
        wanted = str(PurePosixPath(self.names[member]))
        if entry is None or entry.problem or entry.name != wanted or entry.end > end:
            found = "nothing" if entry is None else repr(printable(entry.name))
            raise DatasetError(
                f"the index has {printable(wanted)!r} at byte {start}, the archive {found}",
                where=printable(self.where),
                fix=_FIX,
            )
        return entry.data, entry.size, entry.check


def published_files(tar: Path, folder: Path) -> tuple[Path, Path] | None:
    """The (names, offsets) files of an archive in an index folder, if they are there."""
    for base in (tar.name.removesuffix(".tar"), tar.name):
        files = (folder / f"{base}_names.npy", folder / f"{base}_offsets.npy")
        if all(file.is_file() for file in files):
            return files
    return None


def published_length(offsets_file: Path) -> int:
    """Number of members, without reading the whole array."""
    return max(len(_array(offsets_file, "iu", in_memory=False)) - 1, 0)


def _array(path: Path, kinds: str, *, in_memory: bool = True) -> NDArray[np.generic]:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode=None if in_memory else "r")
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"not a readable array: {error}", where=printable(path), fix=_FIX
        ) from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise DatasetError(
            f"an array {array.dtype} {list(array.shape)}, not one row of "
            f"{'texts' if kinds == 'U' else 'integers'}",
            where=printable(path),
            fix=_FIX,
        )
    return array
