"""Writing a file so that a reader, or a crash, meets the old content or the new, never a part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends without an error.

    The content reaches the disk before the name does. After an error the temporary file is
    removed and ``path`` is what it was. Folders are not created.
    """
    target = Path(path)
    # not tempfile: its files are for the owner's eyes only, ours are for whom the umask says
    temporary = target.parent / f".writing-{uuid.uuid4().hex}{target.suffix}"
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


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
