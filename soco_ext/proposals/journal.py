"""What a run has found so far, image by image, so that a killed run goes on where it was.

A record is its length, its checksum and its content; a record that a kill cut off is left out.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ext_common.data.box_file import ImageBoxes
from ext_common.errors import DatasetError
from ext_common.images import printable

_HEAD = struct.Struct("<II")  # length and checksum
_IMAGE = struct.Struct("<IIII")  # bytes of the name, height, width, boxes


class Journal:
    """An append-only file of proposals.

    Args:
        path: the file; it is made where it does not exist.
        settings: how the proposals are made, and of what. A journal of other settings is refused.

    Raises:
        DatasetError: the journal was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.done: set[str] = set()
        text = json.dumps(dict(settings), sort_keys=True)
        end = 0
        for number, (content, stop) in enumerate(_records(path)):
            end = stop
            if number:
                self.done.add(_image(content).name)
            elif (old := content.decode("utf-8", "replace")) != text:
                raise DatasetError(
                    f"an unfinished run with other options: {_difference(old, text)}",
                    where=printable(path),
                    fix="finish it with its options, or start anew with --restart",
                )
        self._stream: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        self._stream.truncate(end)
        self._stream.seek(end)
        if end == 0:
            self._append(text.encode("utf-8"))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if error is not None and not self.done:
            # nothing to go on with; it would only be in the way of a run with the mistake corrected
            self.path.unlink(missing_ok=True)

    def add(self, image: ImageBoxes) -> None:
        """Note one image; what was added survives a kill of this process."""
        name = image.name.encode("utf-8", "surrogateescape")
        boxes_K4 = np.asarray(image.boxes_K4, dtype="<f4").reshape(-1, 4)
        head = _IMAGE.pack(len(name), *image.size_hw, len(boxes_K4))
        self._append(head + name + boxes_K4.tobytes())
        self.done.add(image.name)

    def images(self) -> Iterator[ImageBoxes]:
        """All images so far."""
        self._stream.flush()
        for number, (content, _) in enumerate(_records(self.path)):
            if number:
                yield _image(content)

    def _append(self, content: bytes) -> None:
        self._stream.write(_HEAD.pack(len(content), zlib.crc32(content)) + content)
        self._stream.flush()


def _difference(old: str, new: str) -> str:
    """The settings that differ."""
    there, here = json.loads(old), json.loads(new)
    keys = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
    return "; ".join(f"{key} {there.get(key)!r}, now {here.get(key)!r}" for key in keys)


def _records(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole records, and where each ends."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        while len(head := stream.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            content = stream.read(length)
            if len(content) < length or zlib.crc32(content) != checksum:
                return
            yield content, stream.tell()


def _image(content: bytes) -> ImageBoxes:
    length, height, width, boxes = _IMAGE.unpack_from(content)
    name = content[_IMAGE.size : _IMAGE.size + length].decode("utf-8", "surrogateescape")
    boxes_K4 = np.frombuffer(content, dtype="<f4", offset=_IMAGE.size + length, count=4 * boxes)
    return ImageBoxes(name, (height, width), boxes_K4.reshape(-1, 4))
