"""CLIP's text transformer as the detectors hold it (``lang_encoder.*``; specification 1.6).

open_clip's implementation, whose parameter names are CLIP's; imported when the first one is built.
Legend: B texts, L tokens (77), W width, D joint embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from regionclip_ext.modeling.encoder_shapes import encoder_shape

HEAD_WIDTH = 64  # of CLIP's text transformers


def build_language_encoder(
    *,
    embed_dim: int,
    width: int = 512,
    heads: int = 8,
    layers: int = 12,
    context: int = 77,
    vocabulary: int = 49408,
) -> nn.Module:
    """A frozen text tower with random weights, in float32.

    Args:
        embed_dim: D.
        width: W.
        heads: attention heads, divide W.
        layers: residual blocks.
        context: L.
        vocabulary: tokens that are known.

    Returns:
        open_clip's ``TextTransformer``; :func:`encode_tokens` runs it.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    tower: nn.Module = TextTransformer(
        context_length=context,
        vocab_size=vocabulary,
        width=width,
        heads=heads,
        layers=layers,
        output_dim=embed_dim,
        act_layer=QuickGELU,
    )
    return tower.float().eval().requires_grad_(False)


def language_encoder_from_config(cfg: CfgNode) -> nn.Module:
    """The text tower of ``MODEL.CLIP.LANG_ENCODER``, as wide as the image encoder's joint space."""
    shape, node = encoder_shape(cfg), cfg.MODEL.CLIP.LANG_ENCODER
    width = node.WIDTH or shape.text_width
    return build_language_encoder(
        embed_dim=shape.embed_dim,
        width=width,
        heads=node.HEADS or max(width // HEAD_WIDTH, 1),
        layers=node.LAYERS,
        context=node.CONTEXT,
        vocabulary=node.VOCABULARY,
    )


def encode_tokens(tower: Any, tokens_BL: Tensor, *, only_eot: bool = True) -> Tensor:
    """Un-normalised text features, in float32 whatever autocast is around.

    Args:
        tower: from :func:`build_language_encoder`.
        tokens_BL: int64; zeros behind the end of the text, which is the largest number of a row.
        only_eot: the end-of-text feature alone.

    Returns:
        ``[B, D]``, or ``[B, L, D]`` for all tokens.
    """
    with torch.autocast(tokens_BL.device.type, enabled=False):
        length = tokens_BL.shape[1]
        x_BLW = tower.token_embedding(tokens_BL) + tower.positional_embedding[:length]
        x_BLW = tower.transformer(x_BLW, attn_mask=tower.attn_mask[:length, :length])
        x_BLW = tower.ln_final(x_BLW)
        if only_eot:
            rows_B = torch.arange(len(tokens_BL), device=tokens_BL.device)
            x_BLW = x_BLW[rows_B, tokens_BL.argmax(dim=1)]
        features: Tensor = x_BLW @ tower.text_projection
        return features
