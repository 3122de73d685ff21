"""Multi-scale deformable attention by bilinear sampling.

Shapes: B images, Q queries, T tokens (cells of all levels, level after level, row by row), D width,
M heads, L levels, P points. Coordinates are (x, y), shares of the padded feature map, 0..1.
Source: Deformable DETR (Zhu et al. 2021), section 4.1, equations 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LevelShapes = Sequence[tuple[int, int]]
"""(height, width) of each level, in cells."""


def deformable_attention(
    values_BTMD: Tensor, shapes: LevelShapes, points_BQMLP2: Tensor, weights_BQMLP: Tensor
) -> Tensor:
    """Weighted sum of values sampled between cells; outside of a map they are 0.

    Args:
        values_BTMD: of each head, D channels a head.
        shapes: of the levels; their cells make T.
        points_BQMLP2: where to sample.
        weights_BQMLP: factor of each sample.

    Returns:
        ``[B, Q, M * D]``.
    """
    num_images, _, heads, channels = values_BTMD.shape
    num_queries, points = points_BQMLP2.shape[1], points_BQMLP2.shape[4]
    grid_BMLQP2 = (2 * points_BQMLP2 - 1).permute(0, 2, 3, 1, 4, 5)
    weights_BMLQP = weights_BQMLP.permute(0, 2, 3, 1, 4)
    total_BMDQ = values_BTMD.new_zeros(num_images * heads, channels, num_queries)
    levels = values_BTMD.split([height * width for height, width in shapes], dim=1)
    for level, ((height, width), values) in enumerate(zip(shapes, levels, strict=True)):
        maps = values.permute(0, 2, 3, 1).reshape(num_images * heads, channels, height, width)
        grid = grid_BMLQP2[:, :, level].reshape(num_images * heads, num_queries, points, 2)
        sampled = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        factor = weights_BMLQP[:, :, level].reshape(num_images * heads, 1, num_queries, points)
        total_BMDQ = total_BMDQ + (sampled * factor).sum(dim=-1)
    return total_BMDQ.view(num_images, heads * channels, num_queries).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Attention in which every query looks at a few learned points around its reference.

    Args:
        width: D of queries, tokens and output; a multiple of ``heads``.
        heads: M.
        levels: L.
        points: P per head and level.
    """

    def __init__(self, *, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        samples = heads * levels * points
        self.sampling_offsets = nn.Linear(width, samples * 2)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks in direction m, its i-th point i cells away; all points weigh the same."""
        angle_M = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=-1)
        direction_M2 = direction_M2 / direction_M2.abs().amax(dim=-1, keepdim=True)
        step_P = torch.arange(1, self.points + 1, dtype=torch.float32)
        offset_MP2 = direction_M2[:, None] * step_P[:, None]
        offset_MLP2 = offset_MP2[:, None].expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offset_MLP2.flatten())
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries_BQD: Tensor,
        references: Tensor,
        tokens_BTD: Tensor,
        shapes: LevelShapes,
        padding_BT: Tensor,
    ) -> Tensor:
        """Attend.

        Args:
            queries_BQD: what looks.
            references: ``[B, Q, L, 2]`` points, or ``[B, Q, L, 4]`` boxes (centre, size), around
                which offsets are cells of the level, or shares of half a box side.
            tokens_BTD: what is looked at.
            shapes: of the levels.
            padding_BT: bool; True on cells outside of an image, whose value is 0.

        Returns:
            ``[B, Q, D]``. Points and weights are computed in single precision at least.
        """
        batch, queries = queries_BQD.shape[:2]
        precise = torch.promote_types(queries_BQD.dtype, torch.float32)
        values_BTD = self.value_proj(tokens_BTD).masked_fill(padding_BT[..., None], 0.0)
        values_BTMD = values_BTD.unflatten(-1, (self.heads, -1)).to(precise)
        split = (batch, queries, self.heads, self.levels, self.points)
        offsets_BQMLP2 = self.sampling_offsets(queries_BQD).to(precise).view(*split, 2)
        logits_BQMX = self.attention_weights(queries_BQD).to(precise).view(*split[:3], -1)
        points = self._points(references.to(precise), offsets_BQMLP2, shapes)
        attended = deformable_attention(
            values_BTMD, shapes, points, logits_BQMX.softmax(dim=-1).view(split)
        )
        output: Tensor = self.output_proj(attended)
        return output

    def _points(self, references: Tensor, offsets_BQMLP2: Tensor, shapes: LevelShapes) -> Tensor:
        centres = references[:, :, None, :, None, :2]
        if references.shape[-1] == 2:
            size_L2 = offsets_BQMLP2.new_tensor([(width, height) for height, width in shapes])
            return centres + offsets_BQMLP2 / size_L2[:, None]
        reach = references[:, :, None, :, None, 2:] * (0.5 / self.points)
        return centres + offsets_BQMLP2 * reach
