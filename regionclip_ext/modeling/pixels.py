"""Normalising and padding pictures (specification 2.4).

Legend: N images of a batch, C channels (3), H, W pixels; the batch is padded right and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import ImageList
from torch import Tensor

from ext_common.errors import ConfigError

_FORMATS = ("RGB", "BGR")


@dataclass(frozen=True)
class PixelFormat:
    """What a network was trained on.

    Args:
        channels: ``RGB`` or ``BGR``: order of the network's input.
        mean: per channel. Below 3 in sum it belongs to values from 0 to 1 (the published rule).
        std: per channel.

    Raises:
        ConfigError: another channel order.
    """

    channels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in _FORMATS:
            raise ConfigError(
                f"pixel format {self.channels!r}", where="INPUT.FORMAT", fix="RGB or BGR"
            )

    @property
    def largest(self) -> float:
        """Value of a white pixel before normalisation: 1 or 255."""
        return 1.0 if sum(self.mean) < 3.0 else 255.0


def normalize_images(
    images: Sequence[Tensor] | Tensor,
    image_sizes: Sequence[tuple[int, int]],
    target: PixelFormat,
    *,
    channels: str,
    largest: float = 255.0,
    divisibility: int = 0,
) -> ImageList:
    """A padded batch in a network's own format; what is padded is 0 after normalisation.

    Args:
        images: per image ``[3, H, W]``, or a padded ``[N, 3, H, W]``; any number type.
        image_sizes: per image (height, width); pixels beyond are ignored.
        target: the network's format.
        channels: order of the channels given.
        largest: value of a white pixel given, 1 or 255.
        divisibility: the padded sides are multiples of this.
    """
    normalized = []
    device = images[0].device
    mean = torch.tensor(target.mean, device=device).view(-1, 1, 1)
    std = torch.tensor(target.std, device=device).view(-1, 1, 1)
    for image_CHW, (height, width) in zip(images, image_sizes, strict=True):
        pixels_CHW = image_CHW[:, :height, :width].float()
        if channels != target.channels:
            pixels_CHW = pixels_CHW.flip(0)
        if largest != target.largest:
            pixels_CHW = (
                pixels_CHW / largest if target.largest == 1.0 else pixels_CHW * target.largest
            )
        normalized.append((pixels_CHW - mean) / std)
    return ImageList.from_tensors(normalized, divisibility)
