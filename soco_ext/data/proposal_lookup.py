"""The proposals of a training image: from the file, drawn, or the whole image.

Legend: K boxes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError, DatasetError, ImageError
from ext_common.images import image_size, printable
from soco_ext.data.view_options import ProposalOptions
from soco_ext.proposals.filtering import BoxFilter, boxes_to_rects
from soco_ext.proposals.proposal_file import open_proposals
from soco_ext.proposals.random_boxes import RandomBoxes


@dataclass(frozen=True)
class NamedImage:
    """An image of a training set, unread.

    Args:
        name: relative path with ``/``, as proposal files have it.
        size_hw: height and width that its record says; None = it says none.
        file: where it lies; empty = not in a file of its own.
    """

    name: str
    size_hw: tuple[int, int] | None = None
    file: str = ""


class ProposalLookup:
    """Boxes by the name of an image.

    Args:
        options: where boxes come from.

    Raises:
        DatasetError: the file cannot be read.
        ConfigError: a filter strategy that is none.
    """

    def __init__(self, options: ProposalOptions) -> None:
        self.options = options
        self.file = open_proposals(options.file) if options.source == "file" else None
        self.strategy = BoxFilter.parse(options.strategy) if options.strategy else None
        self.random = RandomBoxes(
            options.max_props,
            options.aspect_ratio,
            (options.min_size_ratio, options.max_size_ratio),
        )

    def check(self, names: Iterable[str]) -> None:
        """:meth:`check_images` for images of which no more is known than their names."""
        self.check_images(map(NamedImage, names))

    def check_images(self, images: Iterable[NamedImage]) -> NDArray[np.int64]:
        """Look all images of a dataset up before the training starts.

        Returns:
            int64: places in the file of those that it has; none without a file.

        Raises:
            ConfigError: the file has none of them, or, where that is an error, not all, or one with
                another size.
        """
        places = array("q")
        if self.file is None:
            return np.array(places, np.int64)
        count = missing = 0
        first = ""
        for image in images:
            count += 1
            place = self.file.find(image.name)
            if place is None:
                first = image.name if not missing else first
                missing += 1
                continue
            places.append(place)
            if image.size_hw not in (None, self.file.size(place)):
                self._require_size(image.name, place, _size_as_read(image))
        if missing and missing == count:
            example = printable(self.file.name(0)) if len(self.file) else "nothing"
            raise ConfigError(
                f"it has none of the training images; it has {example}, they are {printable(first)}",
                where=printable(self.file.path),
                fix="was it made from another folder? Names start below the folder of images",
            )
        if missing and self.options.missing == "error":
            raise self._missing(first, f"{missing} of {count} images")
        return np.array(places, np.int64)

    def __call__(
        self, name: str, size_hw: tuple[int, int], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        """float32 [K, 4] x1, y1, x2, y2, the last pixel inside; none = the whole image.

        Args:
            name: relative path of the image.
            size_hw: its height and width.
            generator: for random boxes.

        Raises:
            ConfigError: the file lacks the image, or has it with another size. No DatasetError, since
                the file is wrong and not the image: a loader that skips bad images has to stop.
        """
        if self.file is None:
            return self._made(self.options.source, size_hw, generator)
        place = self.file.find(name)
        if place is None:
            if self.options.missing == "error":
                raise self._missing(name, "the image")
            return self._made(self.options.missing, size_hw, generator)
        self._require_size(name, place, size_hw)
        boxes_K4 = self.file.boxes(place)
        if self.strategy is not None and len(boxes_K4):
            boxes_K4 = boxes_K4[self.strategy.keep(boxes_to_rects(boxes_K4), size_hw)]
        if not len(boxes_K4):
            return self._made(self.options.empty, size_hw, generator)
        return boxes_K4

    def _made(
        self, kind: str, size_hw: tuple[int, int], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        if kind == "random":
            return self.random.draw(size_hw, generator)
        return np.zeros((0, 4), dtype=np.float32)

    def _require_size(self, name: str, place: int, size_hw: tuple[int, int] | None) -> None:
        assert self.file is not None
        recorded = self.file.size(place)
        if size_hw is None or size_hw == recorded:
            return
        raise ConfigError(
            f"the image is {size_hw[1]} x {size_hw[0]} pixels; its proposals are of one of "
            f"{recorded[1]} x {recorded[0]} (width x height)",
            where=printable(name),
            fix=f"make {printable(self.file.path)} again from these images",
        )

    def _missing(self, name: str, what: str) -> ConfigError:
        assert self.file is not None
        return ConfigError(
            f"no proposals for {what}: {printable(name)}",
            where=printable(self.file.path),
            fix="make the file again from all images, "
            "or set SOCO.PROPOSALS.MISSING whole_image or random",
        )


def _size_as_read(image: NamedImage) -> tuple[int, int] | None:
    """Of the file, which counts where a record says otherwise (turned or shrunk since); None = bad."""
    if not image.file:
        return image.size_hw
    try:
        return image_size(image.file)
    except ImageError:  # for the policy for bad images, when its turn comes
        return None


def image_name(record: Mapping[str, Any], root: str) -> str:
    """Relative path of a record's image with ``/``, as proposal files have it.

    Args:
        record: dataset dict; its ``image_name`` comes first.
        root: folder of the dataset's images.

    Raises:
        DatasetError: the image is not below the folder.
    """
    if "image_name" in record:
        return str(record["image_name"])
    file_name = str(record.get("file_name", ""))
    prefix = root.rstrip("/") + "/"
    if not root or not file_name.startswith(prefix):
        raise DatasetError(
            f"the image is not below its dataset's folder {printable(root)!r}",
            where=printable(file_name),
            fix="set image_root in the dataset's metadata",
        )
    return file_name[len(prefix) :].lstrip("/")
