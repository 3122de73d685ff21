"""Encoder and decoder layers.

Shapes: B images, T tokens, Q queries, D width, L levels.
Source: Deformable DETR (Zhu et al. 2021), section 4.1; layers normalise after each part.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.modeling.deformable_detr.attention import MultiScaleDeformableAttention
from detic_ext.modeling.deformable_detr.geometry import Memory
from detic_ext.modeling.deformable_detr.options import TransformerOptions


class _Layer(nn.Module):
    """What both kinds of layer have: two linear layers, and dropout on what each part adds."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.linear1 = nn.Linear(options.width, options.feed_forward)
        self.linear2 = nn.Linear(options.feed_forward, options.width)
        self.dropout = nn.Dropout(options.dropout)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.linear1(x)))
        added: Tensor = self.dropout(self.linear2(hidden))
        return x + added


def _deformable(options: TransformerOptions) -> MultiScaleDeformableAttention:
    return MultiScaleDeformableAttention(
        width=options.width, heads=options.heads, levels=options.levels, points=options.points
    )


def _look(
    attention: MultiScaleDeformableAttention, asking: Tensor, references: Tensor, memory: Memory
) -> Tensor:
    tokens_BTD, geometry = memory
    seen: Tensor = attention(asking, references, tokens_BTD, geometry.shapes, geometry.padding_BT)
    return seen


class EncoderLayer(_Layer):
    """Tokens look at tokens around them, on all levels."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__(options)
        self.self_attn = _deformable(options)
        self.norm1 = nn.LayerNorm(options.width)
        self.norm2 = nn.LayerNorm(options.width)

    def forward(self, memory: Memory, positions_BTD: Tensor) -> Tensor:
        """Tokens of the next layer ``[B, T, D]``."""
        tokens_BTD, references_BTL2 = memory.tokens_BTD, memory.geometry.centres_on_levels_BTL2
        seen = _look(self.self_attn, tokens_BTD + positions_BTD, references_BTL2, memory)
        tokens_BTD = self.norm1(tokens_BTD + self.dropout(seen))
        output: Tensor = self.norm2(self._feed_forward(tokens_BTD))
        return output


class DecoderLayer(_Layer):
    """Queries look at one another, then at the tokens around their references."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__(options)
        self.cross_attn = _deformable(options)
        self.norm1 = nn.LayerNorm(options.width)
        self.self_attn = nn.MultiheadAttention(
            options.width, options.heads, dropout=options.dropout, batch_first=True
        )
        self.norm2 = nn.LayerNorm(options.width)
        self.norm3 = nn.LayerNorm(options.width)

    def forward(
        self, queries_BQD: Tensor, positions_BQD: Tensor, references: Tensor, memory: Memory
    ) -> Tensor:
        """Queries of the next layer ``[B, Q, D]``; ``references`` [B, Q, 2 or 4]."""
        asking = queries_BQD + positions_BQD
        attended, _ = self.self_attn(asking, asking, queries_BQD, need_weights=False)
        queries_BQD = self.norm2(queries_BQD + self.dropout(attended))
        around = memory.geometry.on_levels(references)
        seen = _look(self.cross_attn, queries_BQD + positions_BQD, around, memory)
        queries_BQD = self.norm1(queries_BQD + self.dropout(seen))
        output: Tensor = self.norm3(self._feed_forward(queries_BQD))
        return output
