"""Conceptual Captions: what is to be downloaded, and the records of what is there (6.6)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detic_ext.data.preparation.size_journal import SizeJournal
from ext_common.data.annotation_checks import refuse
from ext_common.errors import DatasetError, ImageError

logger = logging.getLogger(__name__)

_THREADS = 8  # headers are read from disk, not computed
_AT_ONCE = 4096


@dataclass(frozen=True)
class CaptionRow:
    """One line of the list; its image is ``{number}.jpg``."""

    number: int
    caption: str
    url: str

    @property
    def file_name(self) -> str:
        """Name of the image in the image folder."""
        return f"{self.number}.jpg"


@dataclass(frozen=True)
class CaptionImages:
    """What became of the rows.

    Args:
        images: records ``id``, ``file_name``, ``height``, ``width``, ``captions``.
        missing: rows whose image is not there.
        bad: "name (reason)" of files that are no images.
    """

    images: list[dict[str, Any]]
    missing: list[CaptionRow]
    bad: list[str]


def read_rows(path: str | Path) -> list[CaptionRow]:
    """The rows of a file of lines ``caption<TAB>url``, numbered from 1.

    Raises:
        DatasetError: no such file, not UTF-8, or lines of another form.
    """
    path = Path(path)
    rows, wrong = [], []
    try:
        # not splitlines(), which also splits at characters that captions may have
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) == 2 and fields[0].strip() and _is_url(fields[1]):
                    rows.append(CaptionRow(number, fields[0], fields[1]))
                else:
                    wrong.append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"the captions cannot be read: {error}", where=str(path)) from error
    refuse(wrong, "lines that are not 'caption<TAB>url', lines", where=str(path))
    if not rows:
        raise DatasetError("no captions", where=str(path))
    return rows


def present_images(
    rows: Sequence[CaptionRow],
    folder: str | Path,
    journal: SizeJournal,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CaptionImages:
    """Records of the rows whose image is in the folder, with sizes read from the files.

    Args:
        rows: of :func:`read_rows`.
        folder: the images; may be missing while nothing is downloaded.
        journal: sizes that are known already; new ones are added.
        progress: called with (rows done, rows in all).
    """
    folder = Path(folder)
    stats = {}
    if folder.is_dir():
        with os.scandir(folder) as entries:
            stats = {entry.name: entry.stat() for entry in entries if entry.is_file()}
    there = [row for row in rows if row.file_name in stats]
    images: list[dict[str, Any]] = []
    bad: list[str] = []

    def size(row: CaptionRow) -> tuple[int, int] | ImageError:
        return journal.size(folder / row.file_name, stats[row.file_name])

    with ThreadPoolExecutor(_THREADS) as threads:
        for part in _parts(there):
            for row, found in zip(part, threads.map(size, part), strict=True):
                if isinstance(found, ImageError):
                    bad.append(f"{row.file_name} ({found.what})")
                    continue
                images.append(
                    {
                        "id": row.number,
                        "file_name": row.file_name,
                        "height": found[0],
                        "width": found[1],
                        "captions": [row.caption],
                    }
                )
            journal.flush()
            if progress is not None:
                progress(len(images) + len(bad), len(there))
    return CaptionImages(images, [row for row in rows if row.file_name not in stats], bad)


def download_list(rows: Sequence[CaptionRow]) -> str:
    """Rows as an input file of aria2c: the address, then the name to save it under."""
    return "".join(f"{row.url}\n  out={row.file_name}\n" for row in rows)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://")) and not any(c.isspace() for c in text)


def _parts(rows: Sequence[CaptionRow]) -> Iterator[Sequence[CaptionRow]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]
