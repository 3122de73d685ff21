"""Ways to get the boxes of an image, under one call.

Legend: K boxes; ``rects_K4`` x, y, width, height.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ext_common.data.box_file import ImageBoxes
from ext_common.errors import DatasetError
from ext_common.images import printable
from soco_ext.proposals.coco_boxes import clip_rects, read_coco_boxes
from soco_ext.proposals.filtering import BoxFilter, boxes_to_rects, rects_to_boxes
from soco_ext.proposals.opencv_search import opencv_search
from soco_ext.proposals.published_json import (
    PublishedRects,
    boxes_of_published,
    published_key,
    read_published,
    refuse_shared_keys,
)
from soco_ext.proposals.random_boxes import RandomBoxes
from soco_ext.proposals.segmentation import PUBLISHED_SEARCH, SearchSettings
from soco_ext.proposals.selective_search import selective_search

Image = NDArray[np.uint8]
Rects = NDArray[np.number]


class Finder(Protocol):
    """Finds rectangles in images.

    Attributes:
        name: what the source is called in files and messages.
        needs_pixels: whether the image has to be decoded; otherwise ``image_HW3`` is None.
    """

    name: str
    needs_pixels: bool

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """x, y, width, height of an image's boxes, before any filter."""


@runtime_checkable
class ChecksNames(Protocol):
    """A finder that cannot serve any set of images, since it tells them apart by their names."""

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse images that would get each other's boxes; called with all before the first.

        Raises:
            DatasetError: there are such images.
        """


@dataclass(frozen=True)
class AuthorsSearch:
    """Selective search in the authors' form."""

    settings: SearchSettings = PUBLISHED_SEARCH
    name: str = "authors"
    needs_pixels: bool = True

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """All regions."""
        return selective_search(_pixels(image_HW3), self.settings).rects_T4


@dataclass(frozen=True)
class OpenCVSearch:
    """OpenCV's selective search."""

    mode: str
    needs_pixels: bool = True

    @property
    def name(self) -> str:
        """opencv-<mode>."""
        return f"opencv-{self.mode}"

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """All regions."""
        return opencv_search(_pixels(image_HW3), self.mode)


@dataclass(frozen=True)
class RandomFinder:
    """Random boxes that depend on the seed and the image's name alone."""

    seed: int = 0
    boxes: RandomBoxes = RandomBoxes()
    name: str = "random"
    needs_pixels: bool = False

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """Up to ``boxes.tries`` rectangles."""
        key = zlib.crc32(name.encode("utf-8", "surrogateescape"))
        generator = np.random.default_rng((self.seed, key))
        return boxes_to_rects(self.boxes.draw(size_hw, generator))


@dataclass(frozen=True)
class CocoFinder:
    """The boxes of a COCO annotation file, clipped to the picture; crowds are left out.

    Args:
        rects: rectangles by file name.
        in_tars: images are called ``<archive>/<name in it>``; the file may have either the whole
            or the name in the archive.
    """

    rects: dict[str, list[list[float]]] = field(repr=False)
    in_tars: bool = False
    name: str = "coco"
    needs_pixels: bool = False

    @classmethod
    def read(cls, path: str | Path, *, in_tars: bool = False) -> CocoFinder:
        """Read a file.

        Raises:
            DatasetError: as :func:`soco_ext.proposals.coco_boxes.read_coco_boxes`.
        """
        return cls(read_coco_boxes(path), in_tars)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises DatasetError where two archives have an image that the file has once."""
        owners: dict[str, str] = {}
        for name in names if self.in_tars else ():
            listed = self._listed(name)
            if listed is not None and owners.setdefault(listed, name) != name:
                raise DatasetError(
                    f"{printable(owners[listed])} and {printable(name)} are one image "
                    f"{printable(listed)!r} to the annotation file",
                    where="--tars",
                    fix="write file names as <archive>/<name in it> in the annotation file",
                )

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """Those of the image.

        Raises:
            DatasetError: the file does not have the image.
        """
        return self._clipped(name, size_hw)[0]

    def outside(self, images: Iterable[ImageBoxes]) -> tuple[int, int]:
        """How many boxes of images were cut at the border, and how many lie outside the picture."""
        counts = [self._clipped(image.name, image.size_hw)[1:] for image in images]
        return sum(cut for cut, _ in counts), sum(dropped for _, dropped in counts)

    def _clipped(self, name: str, size_hw: tuple[int, int]) -> tuple[NDArray[np.float64], int, int]:
        listed = self._listed(name)
        if listed is None:
            raise DatasetError(
                "the annotation file does not have this image",
                where=printable(name),
                fix="give the folder that its file names start from, "
                "or leave such images out with --bad-files skip",
            )
        rects_K4 = np.array(self.rects[listed], dtype=np.float64).reshape(-1, 4)
        return clip_rects(rects_K4, size_hw)

    def _listed(self, name: str) -> str | None:
        """What the annotation file calls an image."""
        if name in self.rects:
            return name
        member = name.partition("/")[2].removeprefix("./")
        return member if self.in_tars and member in self.rects else None


@dataclass(frozen=True)
class PublishedFinder:
    """The authors' JSON.

    Args:
        rects: what the file has.
        path: of the file, for messages.
    """

    rects: PublishedRects = field(repr=False)
    path: str = ""
    name: str = "authors-json"
    needs_pixels: bool = False

    @classmethod
    def read(cls, path: str | Path) -> PublishedFinder:
        """Read ``train_<strategy>.json``, and the list of images without boxes beside it.

        Raises:
            DatasetError: no such file, or values that are no lists of rectangles.
        """
        return cls(read_published(path), printable(path))

    def check_names(self, names: Iterable[str]) -> None:
        """Raises DatasetError where two images have one key."""
        refuse_shared_keys(names)

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """Those of the image's key.

        Raises:
            DatasetError: the file has no such key.
        """
        key = published_key(name)
        if key not in self.rects:
            raise DatasetError(
                f"{self.path} has no key {key!r} (the file name up to the first dot)",
                where=printable(name),
                fix="give the JSON that was made from these images, "
                "or leave such images out with --bad-files skip",
            )
        return boxes_to_rects(boxes_of_published(self.rects[key], name))


def filtered_boxes(
    rects_K4: Rects, size_hw: tuple[int, int], strategy: BoxFilter
) -> NDArray[np.float64]:
    """x1, y1, x2, y2 (last pixel inside) of the rectangles that a filter keeps."""
    return rects_to_boxes(rects_K4[strategy.keep(rects_K4, size_hw)])


def _pixels(image_HW3: Image | None) -> Image:
    if image_HW3 is None:
        raise AssertionError("this finder looks at pixels")
    return image_HW3
