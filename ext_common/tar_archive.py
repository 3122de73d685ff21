"""Random access to the files of one plain tar archive, without unpacking it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from ext_common.errors import DatasetError, ImageError
from ext_common.images import printable
from ext_common.tar_headers import BLOCK
from ext_common.tar_index import TarIndex
from ext_common.tar_index_file import open_index

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
MOST_UNPACKED = 1 << 30
"""A gzip-compressed member may have this many bytes when it is unpacked."""


class MemberTable(Protocol):
    """Where the members of an archive lie: :class:`TarIndex` or the published layout."""

    @property
    def names(self) -> Sequence[str]:
        """Name by member."""

    def __len__(self) -> int: ...

    def place(self, member: int, stream: BinaryIO) -> tuple[int, int, int]:
        """(offset, length, CRC-32 of the header block in front) of a member, in bytes."""


class TarArchive:
    """The files of one archive, by number and by name.

    Reads are positioned (``pread``), so that threads and forked loader workers may share an object.
    Every read also compares the header in front of the content: where the archive was exchanged for
    another one, that is an error, never another file's bytes.

    Args:
        path: the archive.
        table: its index; None = :func:`ext_common.tar_index_file.open_index`.

    Raises:
        DatasetError: no such file, or not the archive that the index was made for.
    """

    def __init__(self, path: str | Path, table: MemberTable | None = None) -> None:
        self.path = Path(path)
        self.table: MemberTable = open_index(path) if table is None else table
        try:
            self._stream: BinaryIO = open(self.path, "rb", buffering=0)  # noqa: SIM115 - lives on
        except OSError as error:
            raise DatasetError(
                f"the archive cannot be read: {error.strerror}", where=printable(path)
            ) from error
        if isinstance(self.table, TarIndex) and not self.table.state.fits(self._stream):
            self._stream.close()
            raise self._changed()

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[object, ...]:
        return (TarArchive, (self.path, self.table))  # opened again where it arrives

    @property
    def names(self) -> Sequence[str]:
        """Names of the files, by number."""
        return self.table.names

    def where(self, member: int) -> str:
        """How messages call a member: ``archive.tar:name``."""
        return f"{printable(self.path)}:{printable(self.names[member])}"

    def read(self, member: int) -> bytes:
        """Content of a file as it is stored.

        Raises:
            DatasetError: the archive cannot be read, or is not the one that was indexed.
        """
        data, size, check = self.table.place(member, self._stream)
        try:
            # the member's own header comes with its content
            content = self._pread(size + BLOCK, data - BLOCK)
        except OSError as error:
            raise DatasetError(
                f"cannot be read: {error.strerror}", where=self.where(member)
            ) from error
        if len(content) != size + BLOCK or zlib.crc32(content[:BLOCK]) != check:
            raise self._changed()
        return content[BLOCK:]

    def read_unpacked(self, member: int) -> bytes:
        """Content of a file; what starts like gzip is unpacked.

        Raises:
            DatasetError: as :meth:`read`.
            ImageError: a gzip stream that is damaged, cut off, or larger than ``MOST_UNPACKED``.
        """
        content = self.read(member)
        return gunzipped(content, self.where(member)) if content[:2] == _GZIP else content

    def _pread(self, length: int, offset: int) -> bytes:
        """One call reads at most 2 GiB."""
        parts: list[bytes] = []
        while length:
            part = os.pread(self._stream.fileno(), length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _changed(self) -> DatasetError:
        return DatasetError(
            "the archive is not the one that was indexed",
            where=printable(self.path),
            fix="start again: the index is then made anew",
        )


def gunzipped(content: bytes, where: str) -> bytes:
    """Unpack gzip streams that follow one another.

    Raises:
        ImageError: damaged, cut off or too large.
    """
    parts: list[bytes] = []
    room = MOST_UNPACKED
    while content:
        unpacker = zlib.decompressobj(_GZIP_WINDOW)
        try:
            parts.append(unpacker.decompress(content, room + 1))
        except zlib.error as error:
            raise ImageError(f"damaged gzip member: {error}", where=where) from error
        room -= len(parts[-1])
        if room < 0:
            raise ImageError(
                f"a gzip member of more than {MOST_UNPACKED} bytes unpacked", where=where
            )
        if not unpacker.eof:
            raise ImageError("a gzip member that is cut off", where=where)
        content = unpacker.unused_data.lstrip(b"\0")
    return b"".join(parts)
