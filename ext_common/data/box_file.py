"""The boxes of many images in one indexed file that loader workers map and share.

The file is an :mod:`ext_common.data.array_file`: opening it reads a header of some hundred bytes,
however many images it has. Images are sorted by their names, which are kept whole, so that two
images never share a key; digests of the names are the index.

Bytes: 8 for each box of whole pixels (16 where a coordinate is a fraction or above 65,535), 4 for
its score where there are scores, 36 for each image, and its name.

Legend: N images; B boxes of all images; K boxes of one image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.array_file import ArrayFileError, map_arrays, read_header, write_arrays
from ext_common.data.label_table import row_starts
from ext_common.errors import DatasetError
from ext_common.images import printable
from ext_common.packed_names import PackedNames, encoded

KIND = "ext-boxes-1"


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image.

    Args:
        name: of the image, such as its relative path with ``/``.
        size_hw: height and width of the image as it was read, in pixels.
        boxes_K4: x1, y1, x2, y2; whether the last pixel is inside is for the maker to say.
        scores_K: one for each box, where the maker has some.
    """

    name: str
    size_hw: tuple[int, int]
    boxes_K4: NDArray[np.number]
    scores_K: NDArray[np.floating] | None = None


class BoxFile:
    """Boxes of N images, read where they lie. Objects can be pickled, and shared by forked workers.

    Args:
        path: what :func:`write_boxes` wrote.
        made_by: the command that makes such files; a file of another one is refused.
        check: compare the digest of the content, which reads all of the file once.

    Raises:
        DatasetError: no such file, another kind of file, or a damaged one.
    """

    def __init__(self, path: str | Path, made_by: str, *, check: bool = False) -> None:
        self.path = Path(path)
        self.made_by = made_by
        try:
            header = read_header(self.path)
            arrays = map_arrays(self.path, check=check)
        except FileNotFoundError as error:
            raise _unusable("cannot be read: there is no such file", path, made_by) from error
        except (OSError, ArrayFileError) as error:
            raise _unusable(f"cannot be read: {error}", path, made_by, damaged=True) from error
        if header.get("kind") != KIND:
            raise _unusable("no file of boxes", path, made_by)
        if header["made_by"] != made_by:
            raise _unusable(f"made by {header['made_by']}, not {made_by}", path, made_by)
        self.settings: dict[str, Any] = header["settings"]
        """How the boxes were made."""
        self._boxes_B4 = arrays["boxes"]
        self._scores_B = arrays.get("scores")
        self._starts_N1 = arrays["box_starts"]
        self._sizes_N2 = arrays["sizes"]
        self._names = PackedNames(arrays["names"], arrays["name_ends"])
        self.digests_N: NDArray[np.uint64] = arrays["digests"]
        """Digests of the names (:func:`name_digest`), ascending."""
        self._places_N = arrays["digest_places"]

    def __len__(self) -> int:
        return len(self._sizes_N2)

    def __reduce__(self) -> tuple[object, ...]:
        # a process that gets this object maps the file itself
        return (BoxFile, (self.path, self.made_by))

    def boxes(self, place: int) -> NDArray[np.float32]:
        """float32 [K, 4] x1, y1, x2, y2 of image ``place``."""
        return self._boxes_B4[self._rows(place)].astype(np.float32)

    def size(self, place: int) -> tuple[int, int]:
        """(height, width) of image ``place``."""
        height, width = self._sizes_N2[self._checked(place)].tolist()
        return height, width

    def name(self, place: int) -> str:
        """Name of image ``place``."""
        return self._names[self._checked(place)]

    def image(self, place: int) -> ImageBoxes:
        """All about image ``place``; boxes in the type that the file has, mapped."""
        rows = self._rows(place)
        scores_K = None if self._scores_B is None else self._scores_B[rows]
        return ImageBoxes(self.name(place), self.size(place), self._boxes_B4[rows], scores_K)

    def find(self, name: str) -> int | None:
        """Place of the image of a name, or None."""
        wanted = name_digest(name)
        at = int(np.searchsorted(self.digests_N, wanted))
        while at < len(self) and self.digests_N[at] == wanted:
            place = int(self._places_N[at])
            if self._names.key(place) == encoded(name):
                return place
            at += 1
        return None

    def items(self) -> Iterator[ImageBoxes]:
        """All images in the order of their names."""
        return map(self.image, range(len(self)))

    def counts(self) -> NDArray[np.int64]:
        """int64 [N]: boxes of each image."""
        return np.diff(self._starts_N1)

    def _rows(self, place: int) -> slice:
        place = self._checked(place)
        return slice(*self._starts_N1[place : place + 2].tolist())

    def _checked(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return place


def write_boxes(
    path: str | Path, images: Iterable[ImageBoxes], made_by: str, settings: Mapping[str, Any]
) -> int:
    """Write a file, whole or not at all.

    Args:
        path: the file.
        images: in any order; all with scores, or none.
        made_by: the command that makes it.
        settings: how the boxes were made; plain values.

    Returns:
        Number of images.

    Raises:
        DatasetError: two images of one name, boxes that are no numbers, or other than one score
            a box.
        OSError: the folder cannot be written, or the disk is full.
    """
    found = sorted(images, key=lambda image: encoded(image.name))
    names = [image.name for image in found]
    _refuse_repeats(names)
    boxes = [np.asarray(image.boxes_K4).reshape(-1, 4) for image in found]
    boxes_B4 = np.concatenate(boxes) if boxes else np.zeros((0, 4), dtype=np.uint16)
    if not np.isfinite(boxes_B4).all():
        raise DatasetError("boxes with coordinates that are no numbers", where=printable(path))
    digests_N = np.array([name_digest(name) for name in names], dtype=np.uint64)
    order_N = np.argsort(digests_N, kind="stable")
    packed = PackedNames.of(names)
    arrays = {
        "boxes": _compact(boxes_B4),
        "box_starts": row_starts([len(rows) for rows in boxes]),
        "sizes": np.array([image.size_hw for image in found], dtype=np.int32).reshape(-1, 2),
        "names": np.frombuffer(packed.blob, dtype=np.uint8),
        "name_ends": packed.ends_M,
        "digests": digests_N[order_N],
        "digest_places": order_N.astype(np.int32),
        **_scores(found),
    }
    header = {"kind": KIND, "made_by": made_by, "settings": dict(settings)}
    write_arrays(path, header, arrays)
    return len(found)


def name_digest(name: str) -> np.uint64:
    """64 bits of a name's BLAKE2b digest."""
    content = hashlib.blake2b(encoded(name), digest_size=8).digest()
    return np.uint64(int.from_bytes(content, "little"))


def _unusable(what: str, path: str | Path, made_by: str, *, damaged: bool = False) -> DatasetError:
    make_it = "delete it and make it again" if damaged else "make it"
    return DatasetError(
        what, where=printable(path), fix=f"{make_it}: tools/prepare_data.py {made_by}"
    )


def _refuse_repeats(names: Sequence[str]) -> None:
    for name, other in pairwise(names):
        if name == other:
            raise DatasetError(
                f"image {printable(name)!r} is there twice", fix="name each image once"
            )


def _scores(images: Sequence[ImageBoxes]) -> dict[str, NDArray[np.float32]]:
    """The column of scores, where there are some."""
    if all(image.scores_K is None for image in images):
        return {}
    scores = []
    for image in images:
        scores_K = image.scores_K
        if scores_K is None or len(scores_K) != len(image.boxes_K4):
            count = "no" if scores_K is None else len(scores_K)
            raise DatasetError(
                f"{count} scores for {len(image.boxes_K4)} boxes", where=printable(image.name)
            )
        scores.append(np.asarray(scores_K, dtype=np.float32))
    return {"scores": np.concatenate(scores)}


def _compact(boxes_B4: NDArray[np.number]) -> NDArray[np.number]:
    """Two bytes a coordinate where nothing is lost."""
    if boxes_B4.dtype == np.uint16:
        return boxes_B4
    small = boxes_B4.size == 0 or (boxes_B4.min() >= 0 and boxes_B4.max() <= 65535)
    whole = small and bool((boxes_B4 == np.floor(boxes_B4)).all())
    return boxes_B4.astype(np.uint16 if whole else np.float32)
