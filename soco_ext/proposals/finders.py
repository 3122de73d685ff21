"""Ways to get the boxes of an image, under one call.

Legend: K boxes; ``rects_K4`` x, y, width, height.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError
from ext_common.images import printable
from soco_ext.proposals.filtering import BoxFilter, boxes_to_rects, rects_to_boxes
from soco_ext.proposals.opencv_search import opencv_search
from soco_ext.proposals.published_json import boxes_of_published, published_key
from soco_ext.proposals.random_boxes import RandomBoxes
from soco_ext.proposals.selective_search import SearchSettings, selective_search

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


@dataclass(frozen=True)
class AuthorsSearch:
    """Selective search in the authors' form."""

    settings: SearchSettings = SearchSettings()
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
    """The boxes of a COCO annotation file; crowds are left out.

    Args:
        rects: rectangles by file name.
    """

    rects: dict[str, list[list[float]]] = field(repr=False)
    name: str = "coco"
    needs_pixels: bool = False

    @classmethod
    def read(cls, path: str | Path) -> CocoFinder:
        """Read a file.

        Raises:
            DatasetError: no COCO file, or an annotation without an image or a box.
        """
        content = read_json(path)
        images, annotations = content.get("images"), content.get("annotations")
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise DatasetError("no lists 'images' and 'annotations'", where=printable(path))
        names = {image.get("id"): str(image.get("file_name")) for image in images}
        rects: dict[str, list[list[float]]] = {name: [] for name in names.values()}
        for annotation in annotations:
            box, name = annotation.get("bbox"), names.get(annotation.get("image_id"))
            if name is None or not isinstance(box, list) or len(box) != 4:
                raise DatasetError(
                    f"annotation {annotation.get('id')!r} has no image or no box of four numbers",
                    where=printable(path),
                )
            if not annotation.get("iscrowd", 0):
                rects[name].append([float(number) for number in box])
        return cls(rects)

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """Those of the image.

        Raises:
            DatasetError: the file does not have the image.
        """
        if name not in self.rects:
            raise DatasetError(
                "the annotation file does not have this image",
                where=printable(name),
                fix="give the folder that its file names start from, "
                "or leave such images out with --bad-files skip",
            )
        return np.array(self.rects[name], dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class PublishedFinder:
    """The authors' JSON; an image that it does not name has no boxes."""

    content: dict[str, Any] = field(repr=False)
    name: str = "authors-json"
    needs_pixels: bool = False

    @classmethod
    def read(cls, path: str | Path) -> PublishedFinder:
        """Read ``train_<strategy>.json``."""
        return cls(read_json(path))

    def __call__(self, name: str, size_hw: tuple[int, int], image_HW3: Image | None) -> Rects:
        """Those of the image's key."""
        return boxes_to_rects(boxes_of_published(self.content.get(published_key(name), []), name))


def filtered_boxes(
    rects_K4: Rects, size_hw: tuple[int, int], strategy: BoxFilter
) -> NDArray[np.float64]:
    """x1, y1, x2, y2 (last pixel inside) of the rectangles that a filter keeps."""
    return rects_to_boxes(rects_K4[strategy.keep(rects_K4, size_hw)])


def _pixels(image_HW3: Image | None) -> Image:
    if image_HW3 is None:
        raise AssertionError("this finder looks at pixels")
    return image_HW3
