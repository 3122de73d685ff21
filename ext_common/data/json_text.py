"""The text of a long file, one window after the other, with line, column and byte of each place."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import BinaryIO, NoReturn

from ext_common.errors import DatasetError


class TextWindow:
    """Decoded text that follows a place in a UTF-8 file.

    Args:
        stream: the file, at its beginning.
        path: what errors call it.
        size: bytes that are read at a time.

    Attributes:
        text: the window.
        at: place in it; everything before may be forgotten.
        ended: whether the window reaches the end of the file.
        bytes_read: bytes read so far.
    """

    def __init__(self, stream: BinaryIO, path: Path, *, size: int) -> None:
        self._stream = stream
        self._path = path
        self._size = size
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = 0  # line ends before the window
        self._columns = 0  # characters between the last of them and the window
        self._byte_at, self._counted = 0, 0  # byte of the place `counted` in the window
        self._ascii = True
        self.text = ""
        self.at = 0
        self.ended = False
        self.bytes_read = 0

    def more(self) -> bool:
        """Forget what lies before ``at`` and read on; False where the file has ended.

        Raises:
            DatasetError: not UTF-8.
        """
        if self.ended:
            return False
        self._forget()
        # an element that is longer than the window makes the window longer
        content = self._stream.read(max(self._size, len(self.text)))
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            place = self.bytes_read - pending + error.start
            raise DatasetError(f"not UTF-8 text: byte {place}", where=str(self._path)) from error
        self.ended = not content
        self.bytes_read += len(content)
        self.text += text
        self._ascii = self.text.isascii()
        return True

    def byte(self, place: int) -> int:
        """Byte offset in the file of a place in the window that is not before ``at``.

        Places must be asked for in ascending order.
        """
        if self._ascii:
            self._byte_at += place - self._counted
        else:
            self._byte_at += len(self.text[self._counted : place].encode())
        self._counted = place
        return self._byte_at

    def position(self, place: int) -> tuple[int, int]:
        """(line, column) of a place in the window, both from 1."""
        line = self._lines + self.text.count("\n", 0, place) + 1
        last = self.text.rfind("\n", 0, place)
        return line, place - last if last >= 0 else self._columns + place + 1

    def refuse(self, problem: str, place: int, fix: str = "") -> NoReturn:
        """Raise DatasetError with the line and column of a place."""
        line, column = self.position(place)
        raise DatasetError(
            f"{problem} at line {line}, column {column}", where=str(self._path), fix=fix
        )

    def _forget(self) -> None:
        self.byte(self.at)
        self._lines += self.text.count("\n", 0, self.at)
        last = self.text.rfind("\n", 0, self.at)
        self._columns = self.at - last - 1 if last >= 0 else self._columns + self.at
        self.text = self.text[self.at :]
        self.at = self._counted = 0
