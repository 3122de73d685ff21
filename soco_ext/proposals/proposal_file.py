"""The proposals of many images in one file that loader workers map and share.

The file is an ``ext_common.data.array_file``: opening it reads a header of some hundred bytes, however
many images it has. Images are sorted by their names (relative paths with ``/``, whole, so that two
images never share a key), which lets :meth:`ProposalFile.find` search without a table.

Bytes: 8 for each box of whole pixels (16 where a coordinate is a fraction or above 65,535), 24 for
each image, and its name.

Legend: N images; B boxes of all images; K boxes of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.array_file import ArrayFileError, map_arrays, read_header, write_arrays
from ext_common.errors import DatasetError
from ext_common.images import printable

KIND = "soco-proposals-1"
_MAKE_IT = "make it with tools/prepare_data.py soco-proposals"


@dataclass(frozen=True)
class ImageProposals:
    """The proposals of one image.

    Args:
        name: relative path with ``/``.
        size_hw: height and width of the upright image in pixels.
        boxes_K4: x1, y1, x2, y2 with the last pixel inside (x2 = x + width - 1).
    """

    name: str
    size_hw: tuple[int, int]
    boxes_K4: NDArray[np.number]


class ProposalFile:
    """Proposals of N images, read where they lie.

    Args:
        path: what :func:`write_proposals` wrote.
        check: compare the digest of the content, which reads all of the file once.

    Raises:
        DatasetError: no such file, another kind of file, or a damaged one.
    """

    def __init__(self, path: str | Path, *, check: bool = False) -> None:
        self.path = Path(path)
        try:
            header = read_header(self.path)
            arrays = map_arrays(self.path, check=check)
        except OSError as error:
            raise DatasetError(
                f"proposals cannot be read: {error.strerror}",
                where=printable(path),
                fix=_MAKE_IT,
            ) from error
        except ArrayFileError as error:
            raise DatasetError(str(error), where=printable(path), fix=_MAKE_IT) from error
        if header.get("kind") != KIND:
            raise DatasetError("no file of proposals", where=printable(path), fix=_MAKE_IT)
        self.settings: dict[str, Any] = header["settings"]
        """How the proposals were made."""
        self._boxes_B4 = arrays["boxes"]
        self._starts_N1 = arrays["box_starts"]
        self._sizes_N2 = arrays["sizes"]
        self._names = arrays["names"]
        self._name_starts_N1 = arrays["name_starts"]

    def __len__(self) -> int:
        return len(self._sizes_N2)

    def __reduce__(self) -> tuple[object, ...]:
        # a process that gets this object maps the file itself
        return (ProposalFile, (self.path,))

    def boxes(self, place: int) -> NDArray[np.float32]:
        """float32 [K, 4] x1, y1, x2, y2 of image ``place``, the last pixel inside."""
        start, end = self._span(self._starts_N1, place)
        return self._boxes_B4[start:end].astype(np.float32)

    def size(self, place: int) -> tuple[int, int]:
        """(height, width) of image ``place``."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        height, width = self._sizes_N2[place].tolist()
        return height, width

    def name(self, place: int) -> str:
        """Relative path of image ``place``."""
        return self._key(place).decode("utf-8", "surrogateescape")

    def find(self, name: str) -> int | None:
        """Place of the image of a name, or None."""
        key = _as_key(name)
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._key(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._key(low) == key else None

    def items(self) -> Iterator[ImageProposals]:
        """All images in the order of their names; boxes in the type that the file has."""
        for place in range(len(self)):
            start, end = self._span(self._starts_N1, place)
            yield ImageProposals(self.name(place), self.size(place), self._boxes_B4[start:end])

    def counts(self) -> NDArray[np.int64]:
        """int64 [N]: boxes of each image."""
        return np.diff(self._starts_N1)

    def _key(self, place: int) -> bytes:
        start, end = self._span(self._name_starts_N1, place)
        return self._names[start:end].tobytes()

    def _span(self, starts_N1: NDArray[np.int64], place: int) -> tuple[int, int]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return int(starts_N1[place]), int(starts_N1[place + 1])


def write_proposals(
    path: str | Path, images: Iterable[ImageProposals], settings: Mapping[str, Any]
) -> int:
    """Write a file atomically.

    Args:
        path: the file.
        images: in any order.
        settings: how the proposals were made; plain values.

    Returns:
        Number of images.

    Raises:
        DatasetError: two images of one name, no image, or boxes that are no numbers.
        OSError: the folder cannot be written, or the disk is full.
    """
    found = [(_as_key(image.name), image) for image in images]
    if not found:
        raise DatasetError("no images", where=printable(path), fix="check the folder of images")
    found.sort(key=lambda item: item[0])
    keys = [key for key, _ in found]
    _refuse_repeats(keys)
    boxes = [np.asarray(image.boxes_K4).reshape(-1, 4) for _, image in found]
    boxes_B4 = np.concatenate(boxes)
    if not np.isfinite(boxes_B4).all():
        raise DatasetError("boxes with coordinates that are no numbers", where=printable(path))
    arrays = {
        "boxes": _compact(boxes_B4),
        "box_starts": _starts([len(rows) for rows in boxes]),
        "sizes": np.array([image.size_hw for _, image in found], dtype=np.int32),
        "names": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "name_starts": _starts([len(key) for key in keys]),
    }
    write_arrays(path, {"kind": KIND, "settings": dict(settings)}, arrays)
    return len(found)


def merge_files(paths: Sequence[str | Path], output: str | Path) -> int:
    """Put the files of several machines together; returns the number of images.

    Raises:
        DatasetError: a file cannot be read, has other settings than the first, or has an image of
            another one, or a part is missing.
    """
    files = [ProposalFile(path, check=True) for path in paths]
    shared = [_without_shard(file.settings) for file in files]
    for file, settings in zip(files, shared, strict=True):
        if settings != shared[0]:
            raise DatasetError(
                f"made with {settings}, but {printable(files[0].path)} with {shared[0]}",
                where=printable(file.path),
                fix="merge files that were made with the same options",
            )
    _require_all_shards(files)
    images = (image for file in files for image in file.items())
    return write_proposals(output, images, shared[0])


def _without_shard(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "shard"}


def _require_all_shards(files: Sequence[ProposalFile]) -> None:
    shards = [str(file.settings.get("shard", "")) for file in files]
    parts = {int(shard.split("/")[1]) for shard in shards if shard}
    if len(parts) != 1 or not all(shards):
        return
    missing = {f"{n}/{max(parts)}" for n in range(1, max(parts) + 1)} - set(shards)
    if missing:
        raise DatasetError(
            f"parts {', '.join(sorted(missing))} are missing", fix="make them, and name all files"
        )


def _refuse_repeats(keys: Sequence[bytes]) -> None:
    for key, other in zip(keys, keys[1:], strict=False):
        if key == other:
            raise DatasetError(
                f"image {printable(key.decode('utf-8', 'replace'))!r} is there twice",
                fix="name each image once",
            )


def _as_key(name: str) -> bytes:
    # names of files need not be UTF-8
    return name.encode("utf-8", "surrogateescape")


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _compact(boxes_B4: NDArray[np.number]) -> NDArray[np.number]:
    """Two bytes a coordinate where nothing is lost."""
    if boxes_B4.dtype == np.uint16:
        return boxes_B4
    small = boxes_B4.size == 0 or (boxes_B4.min() >= 0 and boxes_B4.max() <= 65535)
    whole = small and bool((boxes_B4 == np.floor(boxes_B4)).all())
    return boxes_B4.astype(np.uint16 if whole else np.float32)
