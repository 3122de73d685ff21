"""From an image-text pair to a sample of pretraining.

Shapes: ``image`` uint8 [3, H, W], RGB; ``tokens`` int64 [L] of one caption; boxes XYXY in pixels of
that image.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from ext_common.data.box_file import ImageBoxes
from ext_common.images import DEFAULT_MAX_PIXELS, read_image
from regionclip_ext.data.pairs import PairRecords
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.modeling.clip_tokens import tokenize_counted
from regionclip_ext.modeling.regions.source import as_regions
from regionclip_ext.proposals.store import ProposalStore


@dataclass(frozen=True)
class PairMapper:
    """Reads a pair, resizes and flips its image and draws one of its captions.

    All chance comes from Python's generator, which the loader seeds for every sample: a sample is
    the same in any worker and after a resume. The original takes the number of captions of the
    whole batch from its first sample (pitfall 13); here every image has its own.

    Args:
        records: the loader's.
        resize: of images, and of the boxes with them.
        templates: prompts for images that have tags instead of captions.
        context: L; a longer caption is cut as in the original (pitfall 12).
        keep_end: a caption that is cut keeps its end-of-text token.
        flip: chance of a horizontal flip.
        proposals: gives ``proposals`` to every sample; None = the model finds its own regions.
        max_pixels: larger images are refused before decoding.
    """

    records: PairRecords
    resize: ShortSideResize
    templates: Sequence[str]
    context: int = 77
    keep_end: bool = False
    flip: float = 0.5
    proposals: ProposalStore | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record.

        Returns:
            ``image``, ``tokens``, ``caption``, ``caption_length`` (tokens before it is cut),
            ``image_id`` (its key), ``height`` and ``width`` (before the resize) and, with stored
            proposals, ``proposals``.

        Raises:
            ImageError, DatasetError: a pair that cannot be read, or without stored proposals.
        """
        pair = self.records.read(record["image_id"])
        source = pair.image if isinstance(pair.image, bytes) else str(pair.image)
        image_HWC = read_image(source, format="RGB", max_pixels=self.max_pixels, name=pair.where)
        height, width = image_HWC.shape[:2]
        image_HWC = self.resize(image_HWC)
        flipped = random.random() < self.flip
        if flipped:
            image_HWC = image_HWC[:, ::-1]
        caption = pair.captions.draw(self.templates)
        tokens_L, count = tokenize_counted(caption, context=self.context, keep_end=self.keep_end)
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1))),
            "tokens": tokens_L,
            "caption": caption,
            "caption_length": count,
            "image_id": pair.key,
            "height": height,
            "width": width,
        }
        if self.proposals is not None:
            stored = self.proposals.find(pair.key, (height, width))
            size = (image_HWC.shape[0], image_HWC.shape[1])
            sample["proposals"] = moved_regions(stored, size, flipped=flipped)
        return sample


def moved_regions(stored: ImageBoxes, size: tuple[int, int], *, flipped: bool) -> Instances:
    """Stored proposals in the pixels of the resized (and flipped) image.

    Args:
        stored: with scores, in pixels of the image as it was read.
        size: (height, width) of the result.
        flipped: left and right were exchanged.
    """
    assert stored.scores_K is not None
    height, width = stored.size_hw
    boxes_R4 = torch.from_numpy(stored.boxes_K4.astype(np.float32))
    scale = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float32)
    boxes_R4 = boxes_R4 * scale
    if flipped:
        left, right = size[1] - boxes_R4[:, 2], size[1] - boxes_R4[:, 0]
        boxes_R4 = torch.stack([left, boxes_R4[:, 1], right, boxes_R4[:, 3]], dim=1)
    return as_regions(boxes_R4, size, torch.from_numpy(stored.scores_K.astype(np.float32)))
