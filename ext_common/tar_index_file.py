"""The index of a tar archive, kept in a binary file beside it or in a folder of its own.

A file that was made for another state of the archive is never used: its size, its modification
time, and the headers of its first and last member must be as they were. Besides, every read
compares the header in front of the content (``tar_shards``).

The file: the line ``tar-index 1``, a line of JSON (what archive, how many members, SHA-256 of the
rest), then the arrays and names, numbers in little-endian order.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ext_common.atomic_file import write_bytes
from ext_common.images import printable
from ext_common.packed_names import PackedNames
from ext_common.tar_index import ArchiveState, TarIndex, opened
from ext_common.tar_scan import Progress, scan_tar, warn_if_cut

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"
_MAGIC = b"tar-index 1\n"
_MOST_HEADER_BYTES = 1 << 16


def index_path(tar: str | Path, folder: str | Path | None = None) -> Path:
    """Where the index of an archive is kept: beside it, or in ``folder``."""
    tar = Path(tar)
    return Path(folder or tar.parent) / f"{tar.name}{INDEX_SUFFIX}"


def open_index(
    tar: str | Path,
    folder: str | Path | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> TarIndex:
    """The index of an archive: the kept one where it still holds, else made and kept.

    Where it cannot be written, a warning says so and the archive is scanned each time.

    Raises:
        DatasetError: as :func:`ext_common.tar_scan.scan_tar`.
    """
    return open_index_file(tar, folder, rebuild=rebuild, progress=progress)[0]


def open_index_file(
    tar: str | Path,
    folder: str | Path | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> tuple[TarIndex, Path | None]:
    """:func:`open_index`, and the file that has it; None where it could not be written."""
    path = index_path(tar, folder)
    kept = None if rebuild else kept_index(tar, folder)
    if kept is not None:
        return kept, path
    index = scan_tar(tar, progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _packed(index))
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next start scans the archive again",
            printable(path),
            error.strerror,
        )
        return index, None
    return index, path


def kept_index(tar: str | Path, folder: str | Path | None = None) -> TarIndex | None:
    """The kept index, or None where there is none that fits the archive as it is now."""
    path = index_path(tar, folder)
    index = read_index(path)
    if index is None:
        return None
    with opened(tar) as stream:
        if not index.state.fits(stream):
            logger.warning(
                "%s was made for another state of the archive and is not used", printable(path)
            )
            return None
    warn_if_cut(index, tar)
    return index


def read_index(path: Path) -> TarIndex | None:
    """An index file; None where there is none, or (with a warning) where it is damaged."""
    if not path.is_file():
        return None
    try:
        return _unpacked(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and not used: %s", printable(path), error)
        return None


def _packed(index: TarIndex) -> bytes:
    body = b"".join(
        [
            index.data_M.astype("<i8").tobytes(),
            index.sizes_M.astype("<i8").tobytes(),
            index.checks_M.astype("<u4").tobytes(),
            index.names.ends_M.astype("<i8").tobytes(),
            bytes(index.names.blob),
        ]
    )
    header: dict[str, Any] = {
        "size": index.state.size,
        "mtime_ns": index.state.mtime_ns,
        "probes": index.state.probes,
        "cut_at": index.cut_at,
        "members": len(index),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return _MAGIC + json.dumps(header).encode() + b"\n" + body


def _unpacked(content: bytes) -> TarIndex:
    """Inverse of :func:`_packed`; ValueError, KeyError or TypeError for anything else."""
    if not content.startswith(_MAGIC):
        raise ValueError("not an index of this version")
    line_end = content.index(b"\n", len(_MAGIC), len(_MAGIC) + _MOST_HEADER_BYTES)
    header = json.loads(content[len(_MAGIC) : line_end])
    body = content[line_end + 1 :]
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError("its checksum does not fit")
    count = int(header["members"])
    arrays, offset = [], 0
    for kind in ("<i8", "<i8", "<u4", "<i8"):
        arrays.append(np.frombuffer(body, kind, count, offset))
        offset += arrays[-1].nbytes
    return TarIndex(
        names=PackedNames(body[offset:], arrays[3].astype(np.int64)),
        data_M=arrays[0].astype(np.int64),
        sizes_M=arrays[1].astype(np.int64),
        checks_M=arrays[2].astype(np.uint32),
        state=ArchiveState(
            header["size"],
            header["mtime_ns"],
            tuple((int(place), int(check)) for place, check in header["probes"]),
        ),
        cut_at=header["cut_at"],
    )
