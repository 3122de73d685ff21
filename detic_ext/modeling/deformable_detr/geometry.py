"""Where tokens lie, boxes as numbers without limits, and embeddings of positions.

Shapes: B images, T tokens (cells of all levels, level after level, row by row), L levels, D width.
Boxes are (centre x, centre y, width, height), points (x, y), as shares of the image without padding.
Source: Deformable DETR (Zhu et al. 2021), appendix A; sine embeddings: Vaswani et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from detic_ext.losses.image_label_batch import host_to_device
from detic_ext.modeling.deformable_detr.attention import LevelShapes

_EPS = 1e-5  # logits stay within +-11.5
_TEMPERATURE = 10000.0


@dataclass(frozen=True)
class LevelGeometry:
    """The cells of a batch of padded feature maps.

    Attributes:
        shapes: (height, width) of each level.
        centres_BT2: centre of each cell; above 1 on padding.
        padding_BT: bool; cells outside of the image.
        covered_BL2: share of each map's width and height that the image covers.
    """

    shapes: LevelShapes
    centres_BT2: Tensor
    padding_BT: Tensor
    covered_BL2: Tensor

    @property
    def cells(self) -> list[int]:
        """Tokens of each level."""
        return [height * width for height, width in self.shapes]

    @cached_property
    def centres_on_levels_BTL2(self) -> Tensor:
        """The cells' own centres as :meth:`on_levels` gives them."""
        return self.on_levels(self.centres_BT2)

    def on_levels(self, references: Tensor) -> Tensor:
        """Points or boxes ``[B, Q, 2 or 4]`` as shares of every padded map ``[B, Q, L, 2 or 4]``."""
        covered = self.covered_BL2.repeat(1, 1, references.shape[-1] // 2)
        return references[:, :, None] * covered[:, None]


class Memory(NamedTuple):
    """Tokens ``[B, T, D]`` and where they lie."""

    tokens_BTD: Tensor
    geometry: LevelGeometry


def level_geometry(
    image_sizes: Sequence[tuple[int, int]],
    shapes: LevelShapes,
    strides: Sequence[int],
    device: torch.device,
) -> LevelGeometry:
    """Cells of feature maps.

    Args:
        image_sizes: (height, width) of each image without padding, pixels.
        shapes: (height, width) of each level's map, cells.
        strides: pixels per cell of each level.
        device: of the result; nothing waits for it.
    """
    inside = [
        [
            (min(math.ceil(width / stride), columns), min(math.ceil(height / stride), rows))
            for height, width in image_sizes
        ]
        for (rows, columns), stride in zip(shapes, strides, strict=True)
    ]
    inside_LB2 = host_to_device(torch.tensor(inside, dtype=torch.float32), device)
    centres, padding = [], []
    for (rows, columns), inside_B2 in zip(shapes, inside_LB2, strict=True):
        x = torch.arange(columns, device=device) + 0.5
        y = torch.arange(rows, device=device) + 0.5
        cells_T2 = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
        centres.append(cells_T2 / inside_B2[:, None])
        padding.append((cells_T2 > inside_B2[:, None]).any(dim=-1))
    map_sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
    covered_LB2 = inside_LB2 / host_to_device(map_sizes, device)[:, None]
    return LevelGeometry(
        tuple(shapes),
        torch.cat(centres, dim=1),
        torch.cat(padding, dim=1),
        covered_LB2.transpose(0, 1),
    )


def inverse_sigmoid(shares: Tensor) -> Tensor:
    """Logits in single precision, clamped so that 0 and 1 stay finite."""
    shares = shares.to(torch.promote_types(shares.dtype, torch.float32))
    return shares.clamp(_EPS, 1 - _EPS).logit()


def move_references(references: Tensor, deltas: Tensor) -> Tensor:
    """Boxes ``[..., 4]`` from predictions relative to points or boxes ``[..., 2 or 4]``.

    All four numbers are between 0 and 1 whatever is predicted, so no box is inverted.
    """
    logits = inverse_sigmoid(references)
    deltas = deltas.to(logits.dtype)
    known = logits.shape[-1]
    if known < 4:
        return torch.cat([deltas[..., :known] + logits, deltas[..., known:]], dim=-1).sigmoid()
    return (deltas + logits).sigmoid()


def sine_embedding(shares: Tensor, features: int) -> Tensor:
    """Sines and cosines of each number, in pairs of one wavelength.

    Args:
        shares: ``[..., R]``.
        features: an even number of features per number.

    Returns:
        ``[..., R * features]``.
    """
    pair = torch.arange(features // 2, device=shares.device, dtype=torch.float32)
    wavelength = _TEMPERATURE ** (2 * pair / features)
    angle = shares[..., None] * (2 * math.pi) / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
