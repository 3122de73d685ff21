"""A trunk with one of this package's necks as a detectron2 backbone.

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from ext_common.errors import ConfigError
from ext_common.modeling.pyramid_inputs import pyramid_inputs
from frozen_backbone_ext.modeling.adapted_backbone import build_named
from frozen_backbone_ext.modeling.nasfpn import NasFpn, NasFpnOptions
from frozen_backbone_ext.modeling.paper_fpn import NeckShape, PaperFpn, PlainConvNeck
from frozen_backbone_ext.modeling.part_options import PartOptions

NECKS = ("nasfpn", "fpn", "conv")


class PyramidBackbone(Backbone):
    """Maps ``p3``, ``p4``, ... of a neck over a trunk.

    Args:
        bottom_up: the trunk.
        in_features: names of its maps, finest first.
        neck: takes these maps in a list and gives one per level; has ``levels`` and ``width``.
    """

    def __init__(self, bottom_up: Backbone, in_features: Sequence[str], neck: nn.Module) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = neck
        self.in_features = tuple(in_features)
        levels: Any = neck.levels
        width: Any = neck.width
        self._shapes = {f"p{level}": ShapeSpec(channels=width, stride=2**level) for level in levels}

    @property
    def size_divisibility(self) -> int:
        """Pictures are padded to multiples of the coarsest stride (128 with P7)."""
        return max(shape.stride for shape in self._shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output."""
        return dict(self._shapes)

    def forward(self, images_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pyramid maps [N, width, H / stride, W / stride] by name, finest first."""
        features = self.bottom_up(images_NCHW)
        maps = self.neck([features[name] for name in self.in_features])
        return dict(zip(self._shapes, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PyramidBackbone:
    """The trunk of ``MODEL.PYRAMID.BOTTOM_UP`` with its ``NECK``.

    Raises:
        ConfigError: no such builder or neck, or maps that the neck cannot start from.
    """
    options = cfg.MODEL.PYRAMID
    bottom_up = build_named(options.BOTTOM_UP, "MODEL.PYRAMID.BOTTOM_UP", cfg, input_shape)
    names = pyramid_inputs(cfg, bottom_up)
    shapes = [bottom_up.output_shape()[name] for name in names]
    channels = [shape.channels for shape in shapes]
    if options.NECK == "nasfpn":
        if [shape.stride for shape in shapes] != [8, 16, 32]:
            raise ConfigError(
                f"NAS-FPN starts from strides 8, 16 and 32, "
                f"not from {[shape.stride for shape in shapes]} ({', '.join(names)})",
                where="MODEL.FPN.IN_FEATURES",
                fix="for example ['res3', 'res4', 'res5']",
            )
        return PyramidBackbone(bottom_up, names, NasFpn(channels, nasfpn_options(cfg)))
    shape = NeckShape(
        min_level=int(math.log2(shapes[0].stride)),
        max_level=options.MAX_LEVEL,
        width=options.WIDTH,
        parts=PartOptions.from_config(cfg),
    )
    if len(shape.levels) < len(names):
        raise ConfigError(
            f"{options.MAX_LEVEL} is below the level of {names[-1]}",
            where="MODEL.PYRAMID.MAX_LEVEL",
            fix="raise it, or leave maps out of MODEL.FPN.IN_FEATURES",
        )
    if options.NECK == "fpn":
        return PyramidBackbone(bottom_up, names, PaperFpn(channels, shape))
    if options.NECK == "conv":
        if options.NUM_CONVS < 1:
            raise ConfigError(
                f"{options.NUM_CONVS} convolutions",
                where="MODEL.PYRAMID.NUM_CONVS",
                fix="1 or more",
            )
        neck = PlainConvNeck(channels, shape, num_convs=options.NUM_CONVS)
        return PyramidBackbone(bottom_up, names, neck)
    raise ConfigError(
        f"unknown neck {options.NECK!r}",
        where="MODEL.PYRAMID.NECK",
        fix=f"one of {', '.join(NECKS)}",
    )


def nasfpn_options(cfg: CfgNode) -> NasFpnOptions:
    """Translate ``MODEL.NASFPN``.

    Raises:
        ConfigError: an unknown variant or choice.
    """
    node = cfg.MODEL.NASFPN
    if node.VARIANT not in ("tf", "mm"):
        raise ConfigError(
            f"unknown variant {node.VARIANT!r}", where="MODEL.NASFPN.VARIANT", fix="tf or mm"
        )
    mm = node.VARIANT == "mm"
    if node.EXTRA_LEVEL_CONV not in ("", "yes", "no"):
        raise ConfigError(
            f"unknown value {node.EXTRA_LEVEL_CONV!r}",
            where="MODEL.NASFPN.EXTRA_LEVEL_CONV",
            fix="yes, no, or empty",
        )
    return NasFpnOptions(
        repeats=node.REPEATS,
        width=cfg.MODEL.PYRAMID.WIDTH,
        pool=node.POOL or ("avg" if mm else "max"),
        gate=node.GATE or ("fine" if mm else "coarse"),
        extra_level_conv=mm if not node.EXTRA_LEVEL_CONV else node.EXTRA_LEVEL_CONV == "yes",
        lateral_bias=not mm,
        project_equal=mm,
        merge=node.MERGE,
        cell=node.CELL,
        drop_connect=node.DROP_CONNECT,
        checkpoint=node.CHECKPOINT,
        parts=PartOptions.from_config(cfg),
    )
