"""CLIP's text tower (Radford et al. 2021), with the parameter names of published models.

Its parts are those of open_clip's ``TextTransformer``, imported when the first tower is built.

Shapes: B texts, L tokens (77 for CLIP), W width, D joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ext_common.modeling.full_precision import full_precision


@dataclass(frozen=True)
class TextTowerShape:
    """Sizes of a text tower; the defaults are those of CLIP ViT-B/32.

    Args:
        embed_dim: D, width of the text features.
        width: W.
        heads: attention heads, divide W.
        layers: residual blocks.
        context: L, tokens of a text.
        vocabulary: tokens that are known.
        quick_gelu: OpenAI's activation x * sigmoid(1.702 x) instead of GELU.
    """

    embed_dim: int = 512
    width: int = 512
    heads: int = 8
    layers: int = 12
    context: int = 77
    vocabulary: int = 49408
    quick_gelu: bool = True


class TextTower(nn.Module):
    """Token numbers to un-normalised text features; frozen, in float32 whatever autocast is around.

    Args:
        shape: sizes; the weights are random.
    """

    attn_mask: Tensor

    def __init__(self, shape: TextTowerShape | None = None) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        self.shape = shape = shape or TextTowerShape()
        made = TextTransformer(
            context_length=shape.context,
            vocab_size=shape.vocabulary,
            width=shape.width,
            heads=shape.heads,
            layers=shape.layers,
            output_dim=shape.embed_dim,
            act_layer=QuickGELU if shape.quick_gelu else nn.GELU,
        )
        self.token_embedding = made.token_embedding
        self.positional_embedding = made.positional_embedding
        self.transformer = made.transformer
        self.ln_final = made.ln_final
        self.text_projection = made.text_projection
        self.register_buffer("attn_mask", made.attn_mask, persistent=False)
        self.float().eval().requires_grad_(False)

    def forward(self, tokens_BL: Tensor, *, only_eot: bool = True) -> Tensor:
        """Features of texts.

        Args:
            tokens_BL: int64, at most ``shape.context`` a row; zeros behind the end of the text,
                which is the largest number of a row.
            only_eot: the feature of the end of the text alone.

        Returns:
            float32 ``[B, D]``, or ``[B, L, D]`` for all tokens.
        """
        length = tokens_BL.shape[1]
        with full_precision(self.text_projection):
            x_BLW = self.token_embedding(tokens_BL) + self.positional_embedding[:length]
            x_BLW = self.transformer(x_BLW, attn_mask=self.attn_mask[:length, :length])
            x_BLW = self.ln_final(x_BLW)
            if only_eot:
                rows_B = torch.arange(len(tokens_BL), device=tokens_BL.device)
                x_BLW = x_BLW[rows_B, tokens_BL.argmax(dim=1)]
            features: Tensor = x_BLW @ self.text_projection
        return features
