"""Making the index of a plain tar by reading its headers (no listing of any kind is needed)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ext_common.data.annotation_checks import first_ten, refuse
from ext_common.errors import DatasetError
from ext_common.images import printable
from ext_common.packed_names import PackedNames
from ext_common.tar_headers import (
    BLOCK,
    CutOffError,
    DamagedHeaderError,
    Entry,
    PaxDefaults,
    not_a_tar,
    read_entry,
)
from ext_common.tar_index import ArchiveState, TarIndex, opened

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes passed, bytes in all)."""

_TRAILER_BYTES = 1 << 20  # so much behind the end mark is looked at


def scan_tar(tar: str | Path, progress: Progress | None = None) -> TarIndex:
    """Read all headers of a plain tar.

    A member that stands more than once counts where it stands last, as when the archive is
    unpacked. An archive that is cut off gives the members before that; a warning names the offset.

    Raises:
        DatasetError: no tar archive, a damaged header, or members that are links, devices or
            sparse files, or whose names lead out of the folder.
    """
    where = printable(tar)
    with opened(tar) as stream:
        found = os.fstat(stream.fileno())
        if not found.st_size:
            raise DatasetError("the file is empty", where=where, fix="copy or download it again")
        entries, cut_at = _walk(stream, found.st_size, where, progress)
        after = os.fstat(stream.fileno())
    if (after.st_size, after.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
        raise DatasetError(
            "the archive changed while it was read", where=where, fix="wait until it is complete"
        )
    refused = [f"{printable(e.name)} ({e.problem})" for e in entries if e.problem]
    refuse(refused, "members that are refused", where=where, fix="pack ordinary files only")
    files = _last_of_each([entry for entry in entries if not entry.is_folder], where)
    if not files:
        logger.warning("%s: the archive has no files", where)
    probes = {entry.data - BLOCK: entry.check for entry in (files[:1] + files[-1:])}
    index = TarIndex(
        names=PackedNames.of([entry.name for entry in files]),
        data_M=np.array([entry.data for entry in files], dtype=np.int64),
        sizes_M=np.array([entry.size for entry in files], dtype=np.int64),
        checks_M=np.array([entry.check for entry in files], dtype=np.uint32),
        state=ArchiveState(found.st_size, found.st_mtime_ns, tuple(probes.items())),
        cut_at=cut_at,
    )
    warn_if_cut(index, tar)
    return index


def _walk(
    stream: BinaryIO, size: int, where: str, progress: Progress | None
) -> tuple[list[Entry], int | None]:
    """All entries, and the offset from which on something is missing."""

    def read(offset: int, length: int) -> bytes:
        return os.pread(stream.fileno(), length, offset)

    entries: list[Entry] = []
    defaults = PaxDefaults()
    offset = 0
    while True:
        try:
            entry = read_entry(read, offset, defaults)
        except CutOffError as error:
            if not entries and size < BLOCK:
                raise not_a_tar(read(0, BLOCK), where) from None
            return entries, min(error.offset, size)
        except DamagedHeaderError as error:
            if error.offset == 0:
                raise not_a_tar(read(0, BLOCK), where) from None
            raise DatasetError(
                f"damaged header at byte {error.offset}, after {len(entries)} members: {error.reason}",
                where=where,
                fix="copy or download the archive again",
            ) from None
        if entry is None:
            if read(offset, _TRAILER_BYTES).strip(b"\0"):
                logger.warning(
                    "%s: what stands behind the end mark at byte %d is not read", where, offset
                )
            return entries, None
        if entry.data + entry.size > size:
            return entries, entry.start
        entries.append(entry)
        offset = entry.end
        if progress is not None:
            progress(min(offset, size), size)


def _last_of_each(files: Sequence[Entry], where: str) -> list[Entry]:
    last = {entry.name: place for place, entry in enumerate(files)}
    if len(last) == len(files):
        return list(files)
    repeated = sorted({e.name for place, e in enumerate(files) if last[e.name] != place})
    logger.warning(
        "%s: %d names stand more than once, the last counts: %s",
        where,
        len(repeated),
        first_ten([printable(name) for name in repeated]),
    )
    return [entry for place, entry in enumerate(files) if last[entry.name] == place]


def warn_if_cut(index: TarIndex, tar: str | Path) -> None:
    """Log that an archive is not complete."""
    if index.cut_at is not None:
        logger.warning(
            "%s: cut off at byte %d; the %d files before it are used",
            printable(tar),
            index.cut_at,
            len(index),
        )
