"""A file of tab-separated rows that are read one by one, with an index of where they begin.

The index is ``<stem>.lineidx`` beside the file: the byte offset of every row, one per line
(specification 7). Where it is missing, it is made.

Legend: N rows; ``offsets_N`` int64, bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ext_common.atomic_file import write_bytes
from ext_common.errors import DatasetError
from ext_common.images import printable

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24
_CHECKED_ROWS = 64  # of an index, evenly spaced; every other row is checked when it is read


class TsvFile:
    """Rows by number.

    Args:
        path: the file.

    Raises:
        DatasetError: no such file, no rows, or an index that is of another file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DatasetError("no such file", where=printable(self.path))
        self._size = self.path.stat().st_size
        self._offsets_N = self._index()
        if not len(self._offsets_N):
            raise DatasetError("the file has no rows", where=printable(self.path))
        self._check_index()

    def __len__(self) -> int:
        return len(self._offsets_N)

    @property
    def index_path(self) -> Path:
        """Where the index is."""
        return self.path.with_suffix(".lineidx")

    def row(self, place: int) -> list[str]:
        """The columns of a row.

        Raises:
            DatasetError: the index does not point at a row, or the row is no text.
        """
        start, end = self._span(place)
        with self.path.open("rb") as stream:
            content = _read_at(stream, start, end)
        if b"\n" in content[:-1] or (end < self._size and not content.endswith(b"\n")):
            raise self._out_of_step(place)
        return self._columns(content, place)

    def column(self, number: int) -> Iterator[str]:
        """One column of all rows, in one pass through the file; empty where a row is shorter."""
        with self.path.open("rb") as stream:
            for place, content in enumerate(stream):
                columns = self._columns(content, place)
                yield columns[number] if number < len(columns) else ""

    def where(self, place: int) -> str:
        """How messages call a row."""
        return f"{printable(self.path)}, row {place + 1}"

    def _columns(self, content: bytes, place: int) -> list[str]:
        try:
            return content.rstrip(b"\r\n").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"not UTF-8: {error.reason}", where=self.where(place), fix="convert the file"
            ) from error

    def _span(self, place: int) -> tuple[int, int]:
        place = range(len(self))[place]
        last = place + 1 == len(self)
        return int(self._offsets_N[place]), self._size if last else int(self._offsets_N[place + 1])

    def _index(self) -> NDArray[np.int64]:
        if not self.index_path.is_file():
            return self._new_index()
        try:
            words = self.index_path.read_bytes().split()
            return np.array(words, dtype=np.int64) if words else np.zeros(0, np.int64)
        except (ValueError, OverflowError) as error:
            raise DatasetError(
                f"not one byte offset per line: {error}",
                where=printable(self.index_path),
                fix="delete it: it is made again",
            ) from error

    def _new_index(self) -> NDArray[np.int64]:
        logger.info("%s: looking for its rows", self.path)
        offsets_N = row_offsets(self.path)
        text = "".join(f"{offset}\n" for offset in offsets_N.tolist())
        try:
            write_bytes(self.index_path, text.encode())
        except OSError as error:
            logger.warning("The index is not kept in %s: %s", self.index_path, error)
        return offsets_N

    def _check_index(self) -> None:
        """The whole index against the file's size, some rows of it against the content."""
        rising = (np.diff(self._offsets_N) > 0).all()
        if self._offsets_N[0] != 0 or not rising or self._offsets_N[-1] >= self._size:
            raise self._out_of_step()
        places = np.unique(np.linspace(0, len(self) - 1, _CHECKED_ROWS).astype(np.int64))
        with self.path.open("rb") as stream:
            for place in places[1:].tolist():
                if _read_at(stream, int(self._offsets_N[place]) - 1, None, 1) != b"\n":
                    raise self._out_of_step(place)
            if b"\n" in _read_at(stream, *self._span(-1))[:-1]:
                raise self._out_of_step(len(self) - 1)

    def _out_of_step(self, place: int | None = None) -> DatasetError:
        about = "" if place is None else f" (row {place + 1})"
        return DatasetError(
            f"does not say where the rows of {self.path.name} begin{about}",
            where=printable(self.index_path),
            fix="delete it: it is made again",
        )


def row_offsets(path: Path) -> NDArray[np.int64]:
    """int64 [N]: the byte where each row begins, found in one pass."""
    found = [np.zeros(1, np.int64)]
    position = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
            found.append(ends.astype(np.int64) + position + 1)
            position += len(chunk)
    offsets_N = np.concatenate(found)
    return offsets_N[offsets_N < position]


def _read_at(stream: BinaryIO, start: int, end: int | None, length: int = 0) -> bytes:
    stream.seek(start)
    return stream.read(length if end is None else end - start)
