"""Where the cells of the pyramid lie.

Shapes: L locations of one image over all levels, level after level, row after row;
M = N * L locations of a batch in the order level, image, row, column.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_grid(shape: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    """Centres (x, y) in pixels of a level's cells, [H * W, 2], row-major."""
    height, width = shape
    ys = torch.arange(height, device=device, dtype=torch.float32) * stride + stride // 2
    xs = torch.arange(width, device=device, dtype=torch.float32) * stride + stride // 2
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([grid_x.reshape(-1), grid_y.reshape(-1)], dim=1)


def batch_order(per_image: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Per-image values [L, ...] as one tensor [M, ...] in the order level, image, row, column.

    Args:
        per_image: one tensor per image.
        counts: cells of each level; they add up to L.
    """
    levels = zip(*(values.split(list(counts)) for values in per_image), strict=True)
    return torch.cat([torch.cat(images) for images in levels])


def flatten_maps(maps: Sequence[Tensor]) -> Tensor:
    """Per level [N, C, H, W] as [M, C] in the order level, image, row, column."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps])
