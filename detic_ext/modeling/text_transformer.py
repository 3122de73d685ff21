"""CLIP's text transformer (Radford et al. 2021), with the parameter names of published models.

Shapes: B texts, L tokens (77 for CLIP), W width, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TextTransformerShape:
    """Sizes of a text tower; the defaults are those of CLIP ViT-B/32.

    Args:
        embed_dim: D, width of the text features.
        width: W.
        heads: attention heads.
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


def quick_gelu(values: Tensor) -> Tensor:
    """The activation of OpenAI's models."""
    return values * torch.sigmoid(1.702 * values)


class TextBlock(nn.Module):
    """Attention to earlier tokens, then a two-layer perceptron, each added to its input.

    Args:
        width: W.
        heads: attention heads.
        activation: between the layers of the perceptron.
    """

    def __init__(self, width: int, heads: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )
        self.ln_2 = nn.LayerNorm(width)
        self.activation = activation

    def forward(self, tokens_BLW: Tensor, forbidden_LL: Tensor) -> Tensor:
        """New token features; ``forbidden_LL`` is True where a token (row) must not look."""
        normed_BLW = self.ln_1(tokens_BLW)
        seen_BLW, _ = self.attn(
            normed_BLW, normed_BLW, normed_BLW, attn_mask=forbidden_LL, need_weights=False
        )
        tokens_BLW = tokens_BLW + seen_BLW
        hidden = self.activation(self.mlp["c_fc"](self.ln_2(tokens_BLW)))
        result: Tensor = tokens_BLW + self.mlp["c_proj"](hidden)
        return result


class TextTransformer(nn.Module):
    """Token numbers to un-normalised text features.

    The projection starts as zeros: features of an untrained tower are zeros, which
    :class:`~detic_ext.modeling.caption_encoder.ClipCaptionEncoder` takes for missing weights.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: TextTransformerShape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or TextTransformerShape()
        activation = quick_gelu if shape.quick_gelu else F.gelu
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positional_embedding = nn.Parameter(torch.randn(shape.context, shape.width) * 0.01)
        self.transformer = nn.ModuleDict(
            {
                "resblocks": nn.ModuleList(
                    TextBlock(shape.width, shape.heads, activation) for _ in range(shape.layers)
                )
            }
        )
        self.ln_final = nn.LayerNorm(shape.width)
        self.text_projection = nn.Parameter(torch.zeros(shape.width, shape.embed_dim))

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Text features [B, D], read at the token with the largest number (the end of text).

        Args:
            tokens_BL: int64, zeros behind the end of the text.
        """
        length = tokens_BL.shape[1]
        x_BLW = self.token_embedding(tokens_BL) + self.positional_embedding[:length]
        forbidden_LL = torch.ones(length, length, dtype=torch.bool, device=x_BLW.device).triu_(1)
        for block in cast("nn.ModuleList", self.transformer["resblocks"]):
            x_BLW = block(x_BLW, forbidden_LL)
        end_B = tokens_BL.argmax(dim=1)
        last_BW = self.ln_final(x_BLW)[torch.arange(len(tokens_BL), device=end_B.device), end_B]
        features_BD: Tensor = last_BW @ self.text_projection
        return features_BD
