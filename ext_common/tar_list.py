"""Which archives a dataset has: a folder of them, or a list in a file.

A list that was written here has the number of files of each archive beside it, so that an archive
that is cut off later does not move the numbers of the others' files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ext_common.atomic_file import write_bytes
from ext_common.errors import DatasetError
from ext_common.images import printable

_SUFFIX = ".tar"


def read_tar_list(path: str | Path) -> list[Path]:
    """The archives of a folder (by name), of a text file (one a line), or of an array of paths.

    Relative paths are looked for beside the list first, then in the current folder.

    Raises:
        DatasetError: no such list, or an empty one, or a file that is no list of paths.
    """
    path = Path(path)
    if path.is_dir():
        tars = sorted(p for p in path.iterdir() if p.suffix == _SUFFIX and p.is_file())
    else:
        names = [name for name in _listed(path) if name]
        beside = [path.parent / name for name in names]
        tars = [
            found if found.exists() else Path(name)
            for found, name in zip(beside, names, strict=True)
        ]
    if not tars:
        raise DatasetError("no tar archives", where=printable(path), fix="name at least one")
    return tars


def read_tar_counts(path: str | Path) -> list[int] | None:
    """How many files each archive of a list had when it was written; None where that is unknown.

    Raises:
        DatasetError: counts that are no row of integers, or not one for each archive.
    """
    file = _counts_file(Path(path))
    if not file.is_file():
        return None
    try:
        counts_N = np.load(file, allow_pickle=False)
        if counts_N.dtype.kind != "i" or counts_N.shape != (len(read_tar_list(path)),):
            raise ValueError(f"an array {counts_N.dtype} {list(counts_N.shape)}")
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"the counts do not belong to the list of archives: {error}",
            where=printable(file),
            fix="make the list again",
        ) from error
    return [int(count) for count in counts_N]


def write_tar_list(path: str | Path, tars: Sequence[Path], counts: Sequence[int]) -> None:
    """Write an array of paths, relative to its folder so that both can move, and the counts.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [os.path.relpath(tar.resolve(), path.resolve().parent) for tar in tars]
    write_bytes(_counts_file(path), _npy(np.array(counts, dtype=np.int64)))
    write_bytes(path, _npy(np.array(names)))


def _counts_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_counts.npy")


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _listed(path: Path) -> list[str]:
    try:
        if path.suffix == ".npy":
            names_N = np.load(path, allow_pickle=False)
            if names_N.dtype.kind != "U":
                raise ValueError(f"an array of {names_N.dtype}, not of texts")
            return [str(name) for name in names_N.ravel()]
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"the list of archives cannot be read: {error}",
            where=printable(path),
            fix="give a folder of .tar files, a text file or an array of their paths",
        ) from error
