"""CLIP's text tower as the detectors hold it (``lang_encoder.*``; specification 1.6).

Legend: B texts, L tokens (77), D joint embedding.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ext_common.modeling.text_tower import TextTower, TextTowerShape
from regionclip_ext.modeling.encoder_shapes import encoder_shape

HEAD_WIDTH = 64  # of CLIP's text transformers


def build_language_encoder(**shape: Any) -> TextTower:
    """A frozen text tower with random weights; arguments are those of ``TextTowerShape``."""
    return TextTower(TextTowerShape(**shape))


def language_encoder_from_config(cfg: CfgNode) -> TextTower:
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
    """Un-normalised text features ``[B, D]``, or ``[B, L, D]``: see ``TextTower.forward``."""
    features: Tensor = tower(tokens_BL, only_eot=only_eot)
    return features
