"""Image sizes that were read before, so that an interrupted listing goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from ext_common.errors import ImageError
from ext_common.images import image_size


class SizeJournal:
    """A text file of lines ``name<TAB>bytes<TAB>mtime<TAB>height<TAB>width``, only added to.

    A line counts as long as the file has that size and time; a last line that was cut off by a
    crash does not count. Used as a context: left without an error, the journal is removed, since
    its purpose is fulfilled.

    Args:
        path: the journal; made on the first flush.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known = dict(filter(None, map(_parsed, self._lines())))
        self._new: list[str] = []

    def __enter__(self) -> SizeJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
        else:
            self.flush()

    def __len__(self) -> int:
        return len(self._known)

    def size(self, path: Path, stat: os.stat_result) -> tuple[int, int] | ImageError:
        """(height, width) of an image in pixels, upright; the error for a file that is none."""
        key = (path.name, stat.st_size, stat.st_mtime_ns)
        if key in self._known:
            return self._known[key]
        try:
            found = image_size(path)
        except ImageError as error:
            return error
        if not set("\t\r\n") & set(path.name):
            self._new.append("\t".join(map(str, (*key, *found))) + "\n")
        return found

    def flush(self) -> None:
        """Write what is new; called now and then, so that little is lost."""
        lines, self._new = self._new, []
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
                stream.writelines(lines)

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        whole, _, _ = text.rpartition("\n")
        if whole and not text.endswith("\n"):
            self.path.write_text(whole + "\n", encoding="utf-8", errors="surrogateescape")
        return whole.split("\n")


def _parsed(line: str) -> tuple[tuple[str, int, int], tuple[int, int]] | None:
    name, *numbers = line.split("\t")
    if len(numbers) != 4 or not all(number.isdigit() for number in numbers):
        return None
    size, mtime, height, width = map(int, numbers)
    return (name, size, mtime), (height, width)
