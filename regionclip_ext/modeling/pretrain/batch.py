"""What a pretraining step reads of its samples.

Legend: N images, L tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from ext_common.errors import DatasetError


@dataclass(frozen=True)
class PretrainBatch:
    """Images of a batch, on the device.

    Args:
        items: the samples.
        images: per image [3, H, W], RGB.
        sizes: per image (height, width).
        largest: value of a white pixel: 255 for uint8, 1 for floats.
    """

    items: Sequence[dict[str, Any]]
    images: list[Tensor]
    sizes: list[tuple[int, int]]
    largest: float

    @classmethod
    def of(cls, items: Sequence[dict[str, Any]], device: torch.device) -> PretrainBatch:
        """Move the images to the device.

        Raises:
            DatasetError: no image, or uint8 and float images in one batch.
        """
        images = [item["image"].to(device, non_blocking=True) for item in items]
        whole = {image.dtype == torch.uint8 for image in images}
        if len(whole) != 1:
            raise DatasetError(
                f"a batch of {len(images)} images that are not all of one type",
                fix="uint8 from 0 to 255, or floats from 0 to 1",
            )
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return cls(items, images, sizes, 255.0 if whole.pop() else 1.0)

    def tokens(self) -> Tensor:
        """int64 [N, L], on the host, without the columns that are zero in all rows.

        The text encoder is causal, so that zeros behind the end of a text change nothing before it:
        captions of 15 words cost a fifth of 77 tokens.

        Raises:
            DatasetError: an image without tokens, or with another number of them.
        """
        rows = [item.get("tokens") for item in self.items]
        lengths = {None if row is None else tuple(row.shape) for row in rows}
        if None in lengths or len(lengths) > 1:
            raise DatasetError(
                f"the captions of a batch are not one row of tokens each: {lengths}",
                fix="every image of pretraining needs the tokens of one caption",
            )
        tokens_NL = torch.stack([row for row in rows if row is not None]).cpu().long()
        used_L = (tokens_NL != 0).any(dim=0).nonzero()
        return tokens_NL[:, : int(used_L.max()) + 1 if len(used_L) else 1]

    def stored_proposals(self) -> list[Instances]:
        """The regions that come with the samples, on the device.

        Raises:
            DatasetError: a sample without them.
        """
        missing = [item.get("image_id", "") for item in self.items if "proposals" not in item]
        if missing:
            raise DatasetError(
                f"image {missing[0]} comes without proposals",
                where="MODEL.CLIP.CROP_REGION_TYPE FILE",
                fix="use the loader DATALOADER.SAMPLER_TRAIN ImageTextPairs, or RPN regions",
            )
        device = self.images[0].device
        return [item["proposals"].to(device) for item in self.items]
