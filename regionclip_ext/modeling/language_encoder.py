"""CLIP's text tower as the detectors hold it (``lang_encoder.*``; specification 1.6)."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.modeling.text_tower import TextTower, TextTowerShape
from regionclip_ext.modeling.encoder_shapes import encoder_shape

HEAD_WIDTH = 64  # of CLIP's text transformers


def language_encoder_from_config(cfg: CfgNode) -> TextTower:
    """The text tower of ``MODEL.CLIP.LANG_ENCODER``, as wide as the image encoder's joint space."""
    shape, node = encoder_shape(cfg), cfg.MODEL.CLIP.LANG_ENCODER
    width = node.WIDTH or shape.text_width
    return TextTower(
        TextTowerShape(
            embed_dim=shape.embed_dim,
            width=width,
            heads=node.HEADS or max(width // HEAD_WIDTH, 1),
            layers=node.LAYERS,
            context=node.CONTEXT,
            vocabulary=node.VOCABULARY,
        )
    )
