"""The stacks of encoder and decoder layers.

Shapes: B images, T tokens, Q queries, D width.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from detic_ext.modeling.deformable_detr.geometry import Memory, move_references
from detic_ext.modeling.deformable_detr.heads import box_heads, class_heads
from detic_ext.modeling.deformable_detr.layers import DecoderLayer, EncoderLayer
from detic_ext.modeling.deformable_detr.options import TransformerOptions


class Encoder(nn.Module):
    """Every token gathers what is around it."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(options) for _ in range(options.encoder_layers))

    def forward(self, memory: Memory, positions_BTD: Tensor) -> Memory:
        """The same places with the tokens of the last layer."""
        for layer in self.layers:
            memory = memory._replace(tokens_BTD=layer(memory, positions_BTD))
        return memory


class Decoded(NamedTuple):
    """What a decoder layer says."""

    states_BQD: Tensor
    boxes_BQ4: Tensor


class Decoder(nn.Module):
    """Queries find their boxes, layer after layer.

    It owns the heads: the box heads lead from layer to layer, and the last of each kind is the
    encoder's in two-stage models.

    Args:
        options: settings.
        num_classes: C.
    """

    def __init__(self, options: TransformerOptions, num_classes: int) -> None:
        super().__init__()
        self.refine = options.refine
        self.layers = nn.ModuleList(DecoderLayer(options) for _ in range(options.decoder_layers))
        count = options.decoder_layers + int(options.two_stage)
        shared = not options.refine
        self.bbox_embed = box_heads(
            options.width, count, shared=shared, two_stage=options.two_stage
        )
        self.class_embed = class_heads(options.width, num_classes, count, shared=shared)

    def forward(
        self, queries_BQD: Tensor, positions_BQD: Tensor, references: Tensor, memory: Memory
    ) -> list[Decoded]:
        """States and boxes of every layer; ``references`` [B, Q, 2 or 4] without gradient."""
        decoded = []
        for index, layer in enumerate(self.layers):
            queries_BQD = layer(queries_BQD, positions_BQD, references, memory)
            boxes_BQ4 = move_references(references, self.bbox_embed[index](queries_BQD))
            decoded.append(Decoded(queries_BQD, boxes_BQ4))
            if self.refine:
                references = boxes_BQ4.detach()
        return decoded
