"""Proposing regions for many images once, part by part.

Legend: N images of a batch, R proposals of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ext_common.data.box_file import ImageBoxes
from ext_common.errors import DatasetError, ImageError
from ext_common.images import DEFAULT_MAX_PIXELS, printable, read_image
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.modeling.regions.source import RegionSource
from regionclip_ext.proposals.image_keys import ImageKeys
from regionclip_ext.proposals.store import (
    OF_ONE_PART,
    is_for_other_images,
    open_part,
    part_files,
    part_path,
    part_settings,
    write_part,
)

logger = logging.getLogger(__name__)

PART_SIZE = 4096
"""Images of a part: what an interruption can lose."""


@dataclass(frozen=True)
class ProposalRun:
    """Proposes regions in the images of pretraining data.

    Args:
        records: the images.
        source: proposes boxes in RGB images of values from 0 to 255.
        resize: of the images before, as in training.
        folder: of the part files.
        header: what makes the proposals; an old part that was made otherwise is an error.
        device: where images go.
        batch_size: images at once.
        part_size: images of a part.
        max_pixels: larger images are refused.
        skip_bad: leave images out that cannot be read, instead of ending.
    """

    records: PairRecords
    source: RegionSource
    resize: ShortSideResize
    folder: Path
    header: dict[str, Any]
    device: torch.device
    batch_size: int = 4
    part_size: int = PART_SIZE
    max_pixels: int = DEFAULT_MAX_PIXELS
    skip_bad: bool = False

    def run(self, progress: Callable[[int], None] | None = None) -> int:
        """Make the parts that are missing; those that are there are looked at before.

        Args:
            progress: told the number of images done.

        Returns:
            Images that were processed; those of parts that were there are not counted.

        Raises:
            DatasetError: an image that cannot be read (without ``skip_bad``), two pictures of one
                key, or a part made with other settings or of other images.
        """
        keys = ImageKeys(self.records)
        header = {**self.header, "part_size": self.part_size}
        starts = range(0, len(self.records), self.part_size)
        spans = [(start, min(start + self.part_size, len(self.records))) for start in starts]
        digests = [keys.digest(*span) for span in spans]
        there = self._check_parts(header, digests)
        processed = 0
        for number, (start, end) in enumerate(spans):
            if part_path(self.folder, number) not in there:
                found = self._part(start, end, keys, progress)
                write_part(self.folder, number, header, found, digests[number])
                processed += end - start
            if progress is not None:
                progress(end)
        return processed

    def _check_parts(self, header: Mapping[str, Any], digests: Sequence[str]) -> set[Path]:
        """The part files that are there.

        Args:
            header: what they must say.
            digests: of the keys of each part's images.

        Raises:
            DatasetError: one was made with other settings, or of other images.
        """
        wanted = {part_path(self.folder, n): digest for n, digest in enumerate(digests)}
        there = part_files(self.folder)
        for path in there:
            settings = open_part(path).settings
            # a part behind the last one is of other images too
            expected = part_settings(header, wanted.get(path, ""))
            if is_for_other_images(settings, expected):
                raise DatasetError(
                    "holds proposals of other images than this run's, or in another order",
                    where=printable(path),
                    fix="delete this file, or name another --output",
                )
            if settings != expected:
                raise DatasetError(
                    "holds proposals of another detector or setting: "
                    + _differences(settings, expected),
                    where=printable(path),
                    fix="delete the folder, or name another --output",
                )
        return set(there)

    def _part(
        self, start: int, end: int, keys: ImageKeys, progress: Callable[[int], None] | None
    ) -> Iterable[ImageBoxes]:
        found: dict[str, ImageBoxes] = {}  # a picture with several rows of captions is there once
        for first in range(start, end, self.batch_size):
            batch = list(self._read(range(first, min(first + self.batch_size, end)), keys))
            found.update((image.name, image) for image in self._propose(batch))
            if progress is not None:
                progress(first)
        return found.values()

    def _read(
        self, places: Sequence[int], keys: ImageKeys
    ) -> Iterator[tuple[str, tuple[int, int], NDArray[np.uint8]]]:
        """Key, original (height, width) and resized pixels of images."""
        for place in places:
            try:
                pair = self.records.read(place)
                content = pair.image if isinstance(pair.image, bytes) else str(pair.image)
                image_HWC = read_image(
                    content, format="RGB", max_pixels=self.max_pixels, name=pair.where
                )
            except (ImageError, DatasetError) as error:
                if not self.skip_bad:
                    raise
                logger.warning("left out: %s", error)
                continue
            keys.check(place, pair)
            size = (image_HWC.shape[0], image_HWC.shape[1])
            yield pair.key, size, self.resize(image_HWC)

    def _propose(
        self, batch: Sequence[tuple[str, tuple[int, int], NDArray[np.uint8]]]
    ) -> list[ImageBoxes]:
        if not batch:
            return []
        images = [
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(self.device)
            for _, _, pixels in batch
        ]
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        with torch.no_grad():
            proposals = self.source.propose(images, sizes)
        found = []
        for (key, original, _), size, one in zip(batch, sizes, proposals, strict=True):
            boxes_R4 = one.proposal_boxes.tensor.float().cpu()
            scale = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
            logits_R = one.objectness_logits.float().cpu()
            found.append(ImageBoxes(key, original, (boxes_R4 * scale).numpy(), logits_R.numpy()))
        return found


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings are not the same; ``images`` follows from them."""
    names = sorted(before.keys() | now.keys())
    found = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if name != OF_ONE_PART and before.get(name) != now.get(name)
    ]
    return "; ".join(found)
