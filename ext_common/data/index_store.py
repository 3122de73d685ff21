"""Keeping indices of annotation files: beside the file, or in a cache folder where that is read-only.

An index is used only if it belongs to the very file (size, time, sampled content), was made with
the same options and is undamaged; otherwise it is made again. It contains numbers, no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ext_common.data.annotation_index import (
    VERSION,
    AnnotationIndex,
    build_index,
    index_options,
)
from ext_common.data.array_file import ArrayFileError, map_arrays, read_header, write_arrays
from ext_common.data.lvis_json import LoadOptions
from ext_common.data.progress import Progress, logged_progress
from ext_common.data.source_state import SourceState

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

DEFAULT_INDEX_ABOVE_MB = 100
"""Default of ``DATASETS.INDEX_ABOVE_MB``: larger annotation files (10^6 bytes) are indexed."""


def open_index(
    json_file: str | Path,
    options: LoadOptions | None = None,
    *,
    folder: str | Path = "",
    progress: Progress | None = None,
) -> AnnotationIndex:
    """The index of an annotation file, made now if there is none that fits.

    Processes that start together wait for the first of them instead of all reading the file.

    Args:
        json_file: COCO or LVIS layout.
        options: default :class:`LoadOptions`.
        folder: where indices are kept; empty = beside the file, and where that cannot be written
            in the user's cache folder.
        progress: told (bytes read, bytes in all) while an index is made; default: the log.

    Raises:
        DatasetError: unreadable file or bad content, as ``lvis_json.load_lvis_json``.
    """
    options = options or LoadOptions()
    path = Path(json_file)
    places = index_places(path, options, folder)
    with _one_at_a_time(path):
        for place in places:
            found = _stored(place, path, options)
            if found is not None:
                return found
        logger.info("%s: reading annotations for the first time", path)
        index = build_index(path, options, progress=progress or logged_progress(f"reading {path}"))
        return _stored_now(index, places)


def index_places(path: Path, options: LoadOptions, folder: str | Path = "") -> list[Path]:
    """Where the index of a file may be, the best place first."""
    asked = json.dumps(index_options(options), sort_keys=True)
    mark = hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()
    beside = f"{path.name}.{mark}.index"
    where = hashlib.blake2b(str(path.resolve()).encode(errors="surrogateescape"), digest_size=8)
    elsewhere = f"{path.name[:100]}.{where.hexdigest()}.{mark}.index"
    if folder:
        return [Path(folder).expanduser() / elsewhere]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return [path.parent / beside, cache / "ext_common" / "annotation_index" / elsewhere]


def _stored(place: Path, path: Path, options: LoadOptions) -> AnnotationIndex | None:
    """The index in a file, if it is one of the annotation file as it is now."""
    try:
        header = read_header(place)
        if header.get("version") != VERSION or header.get("options") != index_options(options):
            return None
        if header["state"] != SourceState.of(path).as_dict():
            logger.info("%s was changed; its index is made again", path)
            return None
        arrays = map_arrays(place)
    except FileNotFoundError:
        return None
    except (OSError, ArrayFileError, KeyError, TypeError, ValueError) as error:
        logger.warning("the index %s cannot be used (%s) and is made again", place, error)
        return None
    for key, count, first in header["warnings"]:
        logger.warning("%s: %d cases of %s: %s", path, count, key, first)
    return AnnotationIndex(str(path), header, arrays, stored=place)


def _stored_now(index: AnnotationIndex, places: list[Path]) -> AnnotationIndex:
    """The index mapped from the first place that can be written; as it is where there is none."""
    problem: Exception | None = None
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(place, index.header, index.arrays)
            header, arrays = read_header(place), map_arrays(place)
            return AnnotationIndex(index.source, header, arrays, stored=place)
        except (OSError, ArrayFileError) as error:
            problem = error
    logger.warning(
        "the index of %s cannot be kept (%s): every start reads the file again, "
        "and every process holds %.0f MB (set DATASETS.INDEX_FOLDER to a folder that can be written)",
        index.source,
        problem,
        sum(array.nbytes for array in index.arrays.values()) / 1e6,
    )
    return index


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock on the annotation file itself, which leaves nothing behind."""
    lock: Any = None
    # a file system without locks: processes may do the same work at the same time, no more
    with suppress(OSError):
        lock = path.open("rb")
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()
