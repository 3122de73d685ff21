"""FPN necks over timm models and detectron2's ResNets, with or without P6 and P7."""

from __future__ import annotations

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone

from ext_common.errors import ConfigError
from ext_common.modeling.p6p7 import LastLevelP6P7_P5
from ext_common.modeling.pyramid_inputs import pyramid_inputs
from ext_common.modeling.timm_backbone import build_timm_backbone


def build_fpn(cfg: CfgNode, bottom_up: Backbone, *, with_p6p7: bool) -> FPN:
    """detectron2's FPN over a backbone, as ``MODEL.FPN`` describes it (detic spec 1.1).

    Args:
        cfg: keys under ``MODEL.FPN``; an empty ``IN_FEATURES`` takes all that the backbone gives.
        bottom_up: the backbone; its used strides must double from map to map.
        with_p6p7: add P6 and P7, made from P5.

    Raises:
        ConfigError: a feature that the backbone does not give, strides that do not double, or P6
            and P7 over an FPN that does not end with P5.
    """
    options = cfg.MODEL.FPN
    names = pyramid_inputs(cfg, bottom_up)
    coarsest = bottom_up.output_shape()[names[-1]].stride
    if with_p6p7 and coarsest != 32:
        raise ConfigError(
            f"P6 and P7 are made from P5 (stride 32), this FPN ends with P{int(math.log2(coarsest))}",
            where="MODEL.FPN.IN_FEATURES",
            fix="end with the level of stride 32, or take a p35 backbone",
        )
    channels = options.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=channels,
        norm=options.NORM,
        top_block=LastLevelP6P7_P5(channels, channels) if with_p6p7 else None,
        fuse_type=options.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_p35_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over a timm model, P3 to P5 in the published configs."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), with_p6p7=False)


@BACKBONE_REGISTRY.register()
def build_p67_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over a timm model, with P6 and P7."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), with_p6p7=True)


@BACKBONE_REGISTRY.register()
def build_p35_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over detectron2's ResNet, P3 to P5 in the published configs."""
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), with_p6p7=False)


@BACKBONE_REGISTRY.register()
def build_p67_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over detectron2's ResNet, with P6 and P7."""
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), with_p6p7=True)
