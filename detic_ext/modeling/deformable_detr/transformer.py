"""The transformer: encoder, first-stage proposals or learned queries, decoder.

Shapes: B images, T tokens, Q queries, D width, L levels.
Source: Deformable DETR (Zhu et al. 2021), sections 4.1 and 4.2, appendix A.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detic_ext.losses.detr_data import EncoderPredictions
from detic_ext.modeling.deformable_detr.attention import MultiScaleDeformableAttention
from detic_ext.modeling.deformable_detr.coders import Decoded, Decoder, Encoder
from detic_ext.modeling.deformable_detr.geometry import (
    LevelGeometry,
    Memory,
    move_references,
    sine_embedding,
)
from detic_ext.modeling.deformable_detr.options import TransformerOptions

_PROPOSAL_SIDE = 0.05  # of the first boxes of the finest level; doubled from level to level
_BORDER = 0.01  # boxes with a number closer to 0 or 1 than this are no proposals


class DeformableTransformer(nn.Module):
    """Feature maps to states and boxes of the decoder layers.

    Args:
        options: settings.
        num_classes: C of the class heads, which the decoder owns.
    """

    def __init__(self, options: TransformerOptions, num_classes: int) -> None:
        super().__init__()
        width = options.width
        self.options = options
        self.encoder = Encoder(options)
        self.decoder = Decoder(options, num_classes)
        self.level_embed = nn.Parameter(torch.empty(options.levels, width))
        if options.two_stage:
            self.enc_output = nn.Linear(width, width)
            self.enc_output_norm = nn.LayerNorm(width)
            self.pos_trans = nn.Linear(2 * width, 2 * width)
            self.pos_trans_norm = nn.LayerNorm(2 * width)
        else:
            self.reference_points = nn.Linear(width, 2)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            is_head = name.startswith(("decoder.bbox_embed", "decoder.class_embed"))
            if parameter.dim() > 1 and not is_head:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(
        self,
        maps_BDHW: Sequence[Tensor],
        geometry: LevelGeometry,
        learned_Q2D: Tensor | None = None,
    ) -> tuple[list[Decoded], EncoderPredictions | None]:
        """Decode a batch.

        Args:
            maps_BDHW: one per level.
            geometry: of these maps.
            learned_Q2D: position and content of the queries, for one-stage models.

        Returns:
            Every decoder layer's states and boxes, and the first stage's predictions if there is
            one. There are fewer queries than asked for where an image has fewer tokens.
        """
        tokens_BTD = torch.cat([level.flatten(2).transpose(1, 2) for level in maps_BDHW], dim=1)
        memory = self.encoder(Memory(tokens_BTD, geometry), self._positions(geometry))
        if learned_Q2D is not None:
            both_BQ2D = learned_Q2D.expand(len(tokens_BTD), -1, -1)
            positions_BQD, queries_BQD = both_BQ2D.chunk(2, dim=-1)
            references = self.reference_points(positions_BQD).float().sigmoid()
            return self.decoder(queries_BQD, positions_BQD, references, memory), None
        proposals = self._propose(memory)
        references = self._best_boxes(proposals)
        embedding_BQ2D = sine_embedding(references, self.options.width // 2)
        both_BQ2D = self.pos_trans_norm(self.pos_trans(embedding_BQ2D))
        positions_BQD, queries_BQD = both_BQ2D.chunk(2, dim=-1)
        return self.decoder(queries_BQD, positions_BQD, references, memory), proposals

    def _positions(self, geometry: LevelGeometry) -> Tensor:
        """Where a token is and on which level: ``[B, T, D]``."""
        rows_first_BT2 = geometry.centres_BT2.flip(-1)
        places_BTD = sine_embedding(rows_first_BT2, self.options.width // 2)
        levels = [
            embedding.expand(cells, -1)
            for embedding, cells in zip(self.level_embed, geometry.cells, strict=True)
        ]
        return places_BTD + torch.cat(levels)

    def _propose(self, memory: Memory) -> EncoderPredictions:
        """Every token's box and whether it shows an object."""
        memory_BTD, geometry = memory
        sides = [_PROPOSAL_SIDE * 2.0**level for level in range(self.options.levels)]
        centres_BT2 = geometry.centres_BT2
        side_T2 = torch.cat(
            [
                centres_BT2.new_full((cells, 2), side)
                for side, cells in zip(sides, geometry.cells, strict=True)
            ]
        )
        first_BT4 = torch.cat([centres_BT2, side_T2.expand_as(centres_BT2)], dim=-1)
        usable_BT = ((first_BT4 > _BORDER) & (first_BT4 < 1 - _BORDER)).all(dim=-1)
        usable_BT &= ~geometry.padding_BT
        memory_BTD = memory_BTD.masked_fill(~usable_BT[..., None], 0.0)
        memory_BTD = self.enc_output_norm(self.enc_output(memory_BTD))
        head = self.decoder.class_embed[-1]
        assert isinstance(head, nn.Linear)
        logits_BT1 = nn.functional.linear(memory_BTD, head.weight[:1], head.bias[:1])
        boxes_BT4 = move_references(first_BT4, self.decoder.bbox_embed[-1](memory_BTD))
        return EncoderPredictions(logits_BT1[..., 0], boxes_BT4, usable_BT)

    def _best_boxes(self, proposals: EncoderPredictions) -> Tensor:
        """Boxes ``[B, Q, 4]`` of the tokens with the highest scores, without gradient."""
        logits_BT = proposals.logits_BT.detach().float()
        ranked_BT = logits_BT.masked_fill(~proposals.usable_BT, -torch.inf)
        best_BQ = ranked_BT.topk(min(self.options.queries, ranked_BT.shape[1]), dim=1).indices
        return proposals.boxes_BT4.detach().gather(1, best_BQ[..., None].expand(-1, -1, 4))
