"""C4 region heads with a norm after the last stage, for fine-tuning (specification 5.2)."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """detectron2's ``Res5ROIHeads`` with one more norm, ``res5.norm``.

    Pretrained networks without frozen norms need it to fine-tune well (the recipe of MoCo, which
    SoCo's C4 configuration follows).
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        block: Any
        block, channels = super()._build_res5_block(cfg)
        block.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return block, channels
