"""Regions without a detector: random boxes, or a grid of them (specification 3.1).

Legend: N images, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from ext_common.errors import ConfigError
from regionclip_ext.modeling.regions.source import Images, Sizes, as_regions

CELL = 8  # pixels between places where a random box may begin or end


@dataclass(frozen=True)
class RandomRegions:
    """Boxes between random corners of a grid, the same for all images of a batch.

    The grid covers the padded batch, as published: a box may lie in the padding of a small image.

    Args:
        count: R.
        cell: pixels between grid lines.
        generator: source of chance; None = torch's own of the CPU.
    """

    count: int
    cell: int = CELL
    generator: torch.Generator | None = None

    def propose(self, images: Images, image_sizes: Sizes) -> list[Instances]:
        """See :class:`~regionclip_ext.modeling.regions.source.RegionSource`; logits are 0."""
        height, width = canvas(images, image_sizes)
        across = self._sides(width)
        down = self._sides(height)
        boxes_R4 = torch.stack([across[0], down[0], across[1], down[1]], dim=1) * float(self.cell)
        boxes_R4 = boxes_R4.to(images[0].device)
        return [as_regions(boxes_R4, size) for size in image_sizes]

    def _sides(self, pixels: int) -> tuple[Tensor, Tensor]:
        """First and last grid line of R boxes along one axis; at least one cell between them."""
        cells = max(pixels // self.cell, 1)
        first = torch.randint(cells, (self.count,), generator=self.generator)
        share = torch.rand(self.count, generator=self.generator)
        last = first + 1 + (share * (cells - first)).long().clamp(max=cells - 1)
        return first, last.clamp(max=cells)


@dataclass(frozen=True)
class GridRegions:
    """Half-overlapping squares of several sizes in every image.

    The published configuration accepts ``GRID`` but does nothing with it (pitfall 11.19); this is
    what it could mean.

    Args:
        parts: a square's side is the shorter side of the image divided by one of these.
    """

    parts: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if not self.parts or min(self.parts) < 1:
            raise ConfigError(f"a grid of {self.parts} parts", fix="give whole numbers from 1 on")

    def propose(self, images: Images, image_sizes: Sizes) -> list[Instances]:
        """See :class:`~regionclip_ext.modeling.regions.source.RegionSource`; logits are 0."""
        device = images[0].device
        return [as_regions(self._boxes(size).to(device), size) for size in image_sizes]

    def _boxes(self, image_size: tuple[int, int]) -> Tensor:
        height, width = image_size
        boxes = []
        for part in self.parts:
            side = min(height, width) / part
            for top in _starts(height, side):
                boxes += [(left, top, left + side, top + side) for left in _starts(width, side)]
        return torch.tensor(boxes, dtype=torch.float32)


def canvas(images: Images, image_sizes: Sizes) -> tuple[int, int]:
    """Height and width of the padded batch."""
    if isinstance(images, Tensor):
        return int(images.shape[-2]), int(images.shape[-1])
    return max(size[0] for size in image_sizes), max(size[1] for size in image_sizes)


def _starts(length: float, side: float) -> Sequence[float]:
    """Where squares begin, so that neighbours overlap by half and the last ends at the border."""
    steps = max(round((length - side) / (side / 2)), 0)
    return [(length - side) * step / steps for step in range(steps + 1)] if steps else [0.0]
