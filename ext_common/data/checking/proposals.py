"""Do proposals belong to the images of a folder?

A proposals file is a JSON object with a list of boxes, XYXY in absolute pixels, for each image;
the key is the image's path relative to the image folder. Other files are checked by giving their
entries to :func:`check_proposals`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ext_common.data import problem_kinds as kinds
from ext_common.data.annotation_columns import is_number
from ext_common.data.class_folders import size_or_error
from ext_common.data.findings import Findings
from ext_common.data.image_paths import leaves_root
from ext_common.data.json_stream import EveryKey, JsonStream
from ext_common.data.progress import Progress
from ext_common.errors import DatasetError, ImageError
from ext_common.images import IMAGE_SUFFIXES, printable

_THREADS = 8  # headers are read from disk, not computed

Entry = tuple[str, Sequence[Any]]
"""(path of the image relative to the folder, its boxes)."""


def read_proposals(path: str | Path, *, progress: Progress | None = None) -> Iterator[Entry]:
    """Entries of a proposals file, one after the other.

    Raises:
        DatasetError: no JSON object (with line and column), a key given twice, or a value that is
            no list.
    """
    stream = JsonStream(path, EveryKey(), progress=progress)
    given: set[str] = set()
    for name, elements in groupby(stream.elements(), key=lambda element: element.key):
        given.add(name)
        yield name, [element.value for element in elements]
    for name, kind in stream.types.items():
        if kind != "list":
            raise DatasetError(
                f"the proposals of {name!r} are a {kind}, not a list", where=str(path)
            )
        if name not in given:
            yield name, []


def check_proposals(
    entries: Iterable[Entry],
    root: str | Path,
    *,
    published: bool = False,
    progress: Progress | None = None,
) -> Findings:
    """Every image has proposals, every entry an image, every box lies in its image.

    Args:
        entries: of :func:`read_proposals` or of another kind of file.
        root: image folder; folders in it are searched.
        published: the layout of SoCo's authors: an image's key is its file name up to the first
            dot, and boxes are x, y, width, height.
        progress: told (images done, images in all).
    """
    findings = Findings()
    names = image_names(root)
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        base = os.path.basename(name)
        by_key[base.split(".", 1)[0] if published else base].append(name)
    there = set(names)
    boxes_of: dict[str, Sequence[Any]] = {}
    for key, boxes in entries:
        alike = by_key.get(key, [])
        if published and len(alike) == 1:
            boxes_of[alike[0]] = _as_boxes(boxes, rectangles=True)
        elif not published and key in there:
            boxes_of[key] = _as_boxes(boxes, rectangles=False)
        else:
            _note_stray(key, alike, findings)
    missing = [name for name in names if name not in boxes_of]
    findings.add_all(
        kinds.PROPOSALS_MISSING, range(len(missing)), lambda place: printable(missing[place])
    )
    _check_boxes(boxes_of, Path(root), findings, progress)
    return findings


def image_names(root: str | Path) -> list[str]:
    """Paths of the images below a folder, relative to it, with ``/`` between, sorted.

    Raises:
        DatasetError: no such folder.
    """
    if not Path(root).is_dir():
        raise DatasetError("no such folder", where=str(root), fix="check the path")
    found = []
    for folder, _, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _note_stray(name: str, alike: Sequence[str], findings: Findings) -> None:
    if leaves_root(name):
        findings.add(kinds.NAME_LEAVES_ROOT, printable(name))
    elif len(alike) > 1:
        text = f"{printable(name)} ({' or '.join(map(printable, alike[:2]))})"
        findings.add(kinds.PROPOSALS_AMBIGUOUS, text)
    else:
        hint = f" (meant {printable(alike[0])}?)" if alike else ""
        findings.add(kinds.PROPOSALS_WITHOUT_IMAGE, f"{printable(name)}{hint}")


def _check_boxes(
    boxes_of: Mapping[str, Sequence[Any]],
    root: Path,
    findings: Findings,
    progress: Progress | None,
) -> None:
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(size_or_error, [str(root / name) for name in boxes_of])
        for done, ((name, boxes), size) in enumerate(zip(boxes_of.items(), sizes, strict=True), 1):
            shown = printable(name)
            if isinstance(size, ImageError):
                findings.add(kinds.FILE_UNREADABLE, f"{shown} ({size.what})")
            elif not len(boxes):
                findings.add(kinds.PROPOSALS_EMPTY, shown)
            else:
                bad = _bad_boxes(boxes, *size)
                findings.add_all(kinds.PROPOSAL_BOX, bad, partial(_named, shown))
            if progress is not None:
                progress(done, len(boxes_of))


def _as_boxes(rows: Sequence[Any], *, rectangles: bool) -> Any:
    """float32 [K, 4] XYXY, which takes less room; what are no boxes stays, to be noted later."""
    try:
        with np.errstate(over="ignore"):
            boxes_K4 = np.array(rows, dtype=np.float32).reshape(len(rows), 4)
    except (TypeError, ValueError, OverflowError):
        return rows
    if rectangles:
        boxes_K4[:, 2:] += boxes_K4[:, :2]
    return boxes_K4


def _bad_boxes(boxes: Sequence[Any], height: int, width: int) -> list[int]:
    """Places of boxes that are not four finite numbers, empty, or outside by more than a pixel."""
    try:
        boxes_K4 = np.array(boxes, dtype=np.float64).reshape(len(boxes), 4)
    except (TypeError, ValueError, OverflowError):
        strange = [
            place
            for place, box in enumerate(boxes)
            if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box)))
        ]
        return strange or list(range(len(boxes)))
    with np.errstate(invalid="ignore"):
        good_K = (
            np.isfinite(boxes_K4).all(axis=1)
            & (boxes_K4[:, :2] >= -1).all(axis=1)
            & (boxes_K4[:, 2:] <= (width + 1, height + 1)).all(axis=1)
            & (boxes_K4[:, 2:] > boxes_K4[:, :2]).all(axis=1)
        )
    places: list[int] = np.flatnonzero(~good_K).tolist()
    return places


def _named(name: str, place: int) -> str:
    return f"{place} of {name}"
