"""Writing a file so that a reader, or a crash, meets the old content or the new, never a part."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PREFIX = ".writing-"
_TEMPORARY = re.compile(re.escape(_PREFIX) + r"[0-9a-f]{32}(\..*)?", re.DOTALL)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without an error.

    The content reaches the disk before the name does. After an error the temporary file is
    removed and ``path`` is what it was. Folders are not created.
    """
    target = Path(path).expanduser()
    # not tempfile: its files are for the owner's eyes only, ours are for whom the umask says
    temporary = target.parent / f"{_PREFIX}{uuid.uuid4().hex}{target.suffix}"
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """As :func:`replacing`, with the temporary file open for writing."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        yield stream


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a whole file atomically."""
    with writing(path) as stream:
        stream.write(content)


def remove_leftovers(folder: Path, *, older_than: float = 0.0) -> list[Path]:
    """Delete the temporary files that killed processes left in a folder.

    Args:
        folder: nothing below it is looked at; it need not exist.
        older_than: seconds since the last write, to spare what another process is writing.

    Returns:
        The files that are gone now.
    """
    removed = []
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()
                removed.append(path)
    return removed


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where folders can be synchronised (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
