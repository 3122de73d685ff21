"""A backbone with residual adapters, for any detector and for detectron2's DefaultPredictor."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.adapters import adapt_stages
from frozen_backbone_ext.modeling.trunk import trunk_of

BUILDER = "build_adapted_backbone"


@BACKBONE_REGISTRY.register()
def build_adapted_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone of ``MODEL.ADAPTERS.BACKBONE`` with adapters in its trunk.

    Raises:
        ConfigError: no such builder, or a trunk that cannot have them.
    """
    options = cfg.MODEL.ADAPTERS
    backbone = build_named(options.BACKBONE, "MODEL.ADAPTERS.BACKBONE", cfg, input_shape)
    adapt_stages(trunk_of(backbone), tuple(options.STAGES), form=options.FORM, norm=options.NORM)
    return backbone


def build_named(name: str, key: str, cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The backbone of a registered builder.

    Args:
        name: of the builder.
        key: where it is configured, for messages.
        cfg, input_shape: what builders take.

    Raises:
        ConfigError: it is not registered, or the builder that asks.
    """
    if name not in BACKBONE_REGISTRY or name == BUILDER and key.startswith("MODEL.ADAPTERS"):
        raise ConfigError(
            f"no backbone builder {name!r}",
            where=key,
            fix="the name of one, such as build_resnet_backbone or build_timm_backbone",
        )
    backbone: Backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    return backbone
