"""Reading the headers of a plain tar archive at any place of it.

Members may have names of any length (GNU long names, pax, ustar prefixes) and sizes above 8 GiB.
Directories are passed over; everything else that is not an ordinary file is refused, and so are
names that lead out of a folder. Python's ``tarfile`` decodes the single 512-byte header; it is not
used to walk, because it keeps quiet about archives that are cut off or damaged.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ext_common.data.image_paths import leaves_root
from ext_common.errors import DatasetError
from ext_common.images import printable

BLOCK = 512
"""Unit of a tar archive in bytes: one header, or a piece of content."""

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes, fewer at the end of the file."""

_MOST_EXTENSION_BYTES = 1 << 20  # long name or pax records of one member
_MOST_EXTENSIONS = 16
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_FILE = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINK = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_WITHOUT_CONTENT = (*_LINK, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class CutOffError(Exception):
    """The archive ends inside the member that starts at ``offset``."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class DamagedHeaderError(Exception):
    """There is no valid header at ``offset``."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive; offsets and sizes in bytes.

    Args:
        name: as stored, without a leading "./".
        start: where its first header block lies.
        data: where its content lies; its own header is the block before.
        size: length of the content.
        check: CRC-32 of that header block.
        problem: why it is no member that may be used; empty for an ordinary file.
        is_folder: a directory.
    """

    name: str
    start: int
    data: int
    size: int
    check: int
    problem: str = ""
    is_folder: bool = False

    @property
    def end(self) -> int:
        """Where the next header is."""
        return self.data + padded(self.size)


@dataclass
class PaxDefaults:
    """Records of global pax headers, which hold for all members behind them."""

    records: dict[str, str] = field(default_factory=dict)


def padded(size: int) -> int:
    """Bytes that a content of ``size`` bytes takes in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def read_entry(read: ReadAt, offset: int, defaults: PaxDefaults | None = None) -> Entry | None:
    """The member whose first header lies at ``offset``.

    Args:
        read: reads from the archive.
        offset: a multiple of 512.
        defaults: global pax records met so far; new ones are added.

    Returns:
        None at a block of zeros, the mark of the archive's end. The content of the entry may lie
        beyond the end of the file: that is for the caller to see.

    Raises:
        CutOffError: the file ends inside the headers.
        DamagedHeaderError: something else lies there.
    """
    defaults = PaxDefaults() if defaults is None else defaults
    start = offset
    own: dict[str, str] = {}
    for _ in range(_MOST_EXTENSIONS):
        block = read(offset, BLOCK)
        if len(block) < BLOCK:
            raise CutOffError(start)
        if not block.strip(b"\0"):
            if offset != start:
                raise DamagedHeaderError(offset, "an extended header without a member")
            return None
        info = _decoded(block, offset)
        if info.type not in (_LONG_NAME, _LONG_LINK, tarfile.XGLTYPE, *_PAX):
            return _entry(info, block, start, offset, {**defaults.records, **own})
        content = _extension(read, info, offset, start)
        if info.type == _LONG_NAME:
            own["path"] = content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XGLTYPE:
            defaults.records.update(_pax_records(content, offset))
        elif info.type in _PAX:
            own.update(_pax_records(content, offset))
        offset += BLOCK + padded(info.size)
    raise DamagedHeaderError(offset, f"more than {_MOST_EXTENSIONS} extended headers")


def _decoded(block: bytes, offset: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedHeaderError(offset, str(error)) from None
    if info.size < 0:
        raise DamagedHeaderError(offset, "a negative size")
    return info


def _extension(read: ReadAt, info: tarfile.TarInfo, offset: int, start: int) -> bytes:
    if info.size > _MOST_EXTENSION_BYTES:
        raise DamagedHeaderError(offset, f"an extended header of {info.size} bytes")
    content = read(offset + BLOCK, info.size)
    if len(content) < info.size:
        raise CutOffError(start)
    return content


def _pax_records(content: bytes, offset: int) -> dict[str, str]:
    """The ``length key=value`` lines of a pax header."""
    records: dict[str, str] = {}
    position = 0
    while position < len(content) and content[position]:
        digits, blank, _ = content[position : position + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = content[position : position + length]
        key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
        if not (blank and equals and len(line) == length and line.endswith(b"\n")):
            raise DamagedHeaderError(offset, "unreadable pax records")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position += length
    return records


def _entry(
    info: tarfile.TarInfo, block: bytes, start: int, offset: int, pax: Mapping[str, str]
) -> Entry:
    stored = pax.get("path", info.name)
    name = str(PurePosixPath(stored)) if stored else ""
    size = info.size
    if "size" in pax:
        if not pax["size"].isdigit():
            raise DamagedHeaderError(offset, f"size {pax['size']!r} in the pax records")
        size = int(pax["size"])
    is_folder = info.type == tarfile.DIRTYPE
    problem = ""
    if not is_folder:
        problem = _problem(info.type, name, pax)
    return Entry(
        name=name,
        start=start,
        data=offset + BLOCK,
        size=0 if info.type in _WITHOUT_CONTENT else size,
        check=zlib.crc32(block),
        problem=problem,
        is_folder=is_folder,
    )


def _problem(kind: bytes, name: str, pax: Mapping[str, str]) -> str:
    if kind in _LINK:
        return "a link"
    if kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in pax):
        return "a sparse file"
    if kind not in _FILE:
        return f"not a file (type {kind.decode('latin-1')!r})"
    if leaves_root(name):
        return "a name that leaves the folder"
    return ""


def not_a_tar(start: bytes, where: str) -> DatasetError:
    """The error for a file whose first block is no tar header."""
    packers = {
        b"\x1f\x8b": "gunzip",
        b"BZh": "bunzip2",
        b"\xfd7zXZ": "unxz",
        b"\x28\xb5\x2f\xfd": "unzstd",
        b"PK\x03\x04": "unzip it and pack it with tar",
    }
    for magic, tool in packers.items():
        if start.startswith(magic):
            return DatasetError(
                "compressed as a whole: its members cannot be read one by one",
                where=printable(where),
                fix=f"unpack it to a plain tar ({tool})",
            )
    return DatasetError(
        "not a tar archive", where=printable(where), fix="copy or download it again"
    )
