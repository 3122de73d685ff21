"""Proposing regions for many images once, part by part.

Legend: N images of a batch, R proposals of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ext_common.data.box_file import ImageBoxes
from ext_common.errors import DatasetError, ImageError
from ext_common.images import DEFAULT_MAX_PIXELS, read_image
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.modeling.regions.source import RegionSource
from regionclip_ext.proposals.store import open_part, part_path, write_part

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
        """Make the parts that are missing.

        Args:
            progress: told the number of images done.

        Returns:
            Images that were processed; those of parts that were there are not counted.

        Raises:
            DatasetError: an image that cannot be read (without ``skip_bad``), or a part made with
                other settings.
        """
        processed = 0
        for number, start in enumerate(range(0, len(self.records), self.part_size)):
            end = min(start + self.part_size, len(self.records))
            path = part_path(self.folder, number)
            if path.is_file():
                self._check(path, start, end)
            else:
                found = self._part(start, end, progress)
                write_part(self.folder, number, {**self.header, "part_size": self.part_size}, found)
                processed += end - start
            if progress is not None:
                progress(end)
        return processed

    def _check(self, path: Path, start: int, end: int) -> None:
        if open_part(path).settings != {**self.header, "part_size": self.part_size}:
            raise DatasetError(
                f"holds images {start} to {end - 1} with proposals of another detector or setting",
                where=str(path),
                fix="delete the folder, or name another --output",
            )

    def _part(
        self, start: int, end: int, progress: Callable[[int], None] | None
    ) -> Iterable[ImageBoxes]:
        found: dict[str, ImageBoxes] = {}  # of images with one key the last one stays
        for first in range(start, end, self.batch_size):
            batch = list(self._read(range(first, min(first + self.batch_size, end))))
            found.update((image.name, image) for image in self._propose(batch))
            if progress is not None:
                progress(first)
        return found.values()

    def _read(
        self, places: Sequence[int]
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
