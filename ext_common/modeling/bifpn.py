"""BiFPN: a pyramid neck with weighted connections in both directions (Tan et al. 2020, section 3).

Shape suffixes: N images, C channels, H and W rows and columns of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError
from ext_common.modeling.pyramid_inputs import pyramid_inputs
from ext_common.modeling.timm_backbone import build_timm_backbone

_EPSILON = 1e-4  # of the fast normalised fusion
_GN_GROUPS = 32  # detectron2's "GN"


class FusionNode(nn.Module):
    """Weighted mean of maps, then convolution, norm and swish.

    The weights are learned, kept non-negative by ReLU and divided by their sum + 1e-4 ("fast
    normalised fusion", section 3.3).

    Args:
        num_inputs: maps that are fused.
        channels: C of all of them and of the result.
        norm: a norm of detectron2, or empty.
        separable: depthwise 3x3 and pointwise convolution instead of a full 3x3 one.
    """

    def __init__(self, num_inputs: int, channels: int, *, norm: str, separable: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_inputs))
        self.conv = (
            nn.Sequential(
                Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                _conv(channels, channels, 1, norm),
            )
            if separable
            else _conv(channels, channels, 3, norm)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The fused map, of the shape of each input [N, C, H, W]."""
        weight = F.relu(self.weight)
        share = weight / (weight.sum() + _EPSILON)
        fused_NCHW = torch.stack([map_ * s for map_, s in zip(maps, share, strict=True)]).sum(0)
        result_NCHW: Tensor = F.silu(self.conv(fused_NCHW))
        return result_NCHW


class BiFPNLayer(nn.Module):
    """Once down and once up the pyramid (figure 2d).

    Args:
        num_levels: at least 2.
        channels: C of every level.
        norm: a norm of detectron2, or empty.
        separable: see :class:`FusionNode`.
    """

    def __init__(self, num_levels: int, channels: int, *, norm: str, separable: bool) -> None:
        super().__init__()

        def node(num_inputs: int) -> FusionNode:
            return FusionNode(num_inputs, channels, norm=norm, separable=separable)

        # down[i] makes level i; up[i] makes level i + 1, the last of which has no middle map
        self.down = nn.ModuleList(node(2) for _ in range(num_levels - 1))
        self.up = nn.ModuleList(
            node(3 if level < num_levels - 1 else 2) for level in range(1, num_levels)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """New maps of the levels [N, C, H, W], finest first; each is half the one before."""
        middle = [levels[-1]]
        for map_, node in zip(levels[-2::-1], reversed(self.down), strict=True):
            middle.insert(0, node([map_, upsample_to(middle[0], map_)]))
        results = [middle[0]]
        for index, node in enumerate(self.up, start=1):
            inputs = [levels[index]] if index == len(levels) - 1 else [levels[index], middle[index]]
            results.append(node([*inputs, halve(results[-1])]))
        return results


class BiFPN(Backbone):
    """Pyramid ``p{log2(stride)}`` over a backbone.

    Args:
        bottom_up: the backbone.
        in_features: its maps that the pyramid starts from, finest first, strides doubling.
        out_channels: C of every level.
        num_levels: levels; those beyond the inputs are pooled from the coarsest input.
        num_layers: repeats of :class:`BiFPNLayer`.
        norm: a norm of detectron2, or empty.
        separable: depthwise separable convolutions, as in EfficientDet.

    Raises:
        ConfigError: fewer levels than inputs or than 2, no layers, or a norm that does not fit.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int = 160,
        num_levels: int = 5,
        num_layers: int = 6,
        norm: str = "GN",
        separable: bool = False,
    ) -> None:
        super().__init__()
        _check(len(in_features), out_channels, num_levels, num_layers, norm)
        shapes = bottom_up.output_shape()
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.lateral = nn.ModuleList(
            _conv(shapes[name].channels, out_channels, 1, norm) for name in in_features
        )
        extra = num_levels - len(in_features)
        self.top = _conv(shapes[in_features[-1]].channels, out_channels, 1, norm) if extra else None
        self.layers = nn.ModuleList(
            BiFPNLayer(num_levels, out_channels, norm=norm, separable=separable)
            for _ in range(num_layers)
        )
        finest = shapes[in_features[0]].stride
        self._shapes = {
            f"p{int(math.log2(finest)) + level}": ShapeSpec(
                channels=out_channels, stride=finest * 2**level
            )
            for level in range(num_levels)
        }
        self._out_features = list(self._shapes)
        self._size_divisibility = max(bottom_up.size_divisibility, shapes[in_features[-1]].stride)

    @property
    def size_divisibility(self) -> int:
        """Batches are padded to multiples of it."""
        return self._size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every level."""
        return dict(self._shapes)

    def forward(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Levels [N, C, ceil(H / stride), ceil(W / stride)] by name, finest first."""
        features = self.bottom_up(images_NCHW)
        inputs = [features[name] for name in self.in_features]
        levels = [conv(map_) for conv, map_ in zip(self.lateral, inputs, strict=True)]
        if self.top is not None:
            levels.append(halve(self.top(inputs[-1])))
            while len(levels) < len(self._shapes):
                levels.append(halve(levels[-1]))
        for layer in self.layers:
            levels = layer(levels)
        return dict(zip(self._shapes, levels, strict=True))


def upsample_to(coarse_NCHW: Tensor, fine_NCHW: Tensor) -> Tensor:
    """The coarse map at twice its size, cut to the fine map's where that one's is odd."""
    height, width = fine_NCHW.shape[-2:]
    return F.interpolate(coarse_NCHW, scale_factor=2.0, mode="nearest")[..., :height, :width]


def halve(fine_NCHW: Tensor) -> Tensor:
    """Max pooling to half the size, rounded up."""
    return F.max_pool2d(fine_NCHW, kernel_size=3, stride=2, padding=1)


def build_bifpn(cfg: CfgNode, bottom_up: Backbone) -> BiFPN:
    """The neck of ``MODEL.BIFPN`` over the maps of ``MODEL.FPN.IN_FEATURES``."""
    options = cfg.MODEL.BIFPN
    return BiFPN(
        bottom_up=bottom_up,
        in_features=pyramid_inputs(cfg, bottom_up),
        out_channels=options.OUT_CHANNELS,
        num_levels=options.NUM_LEVELS,
        num_layers=options.NUM_BIFPN,
        norm=options.NORM,
        separable=options.SEPARABLE_CONV,
    )


@BACKBONE_REGISTRY.register()
def build_p37_timm_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """BiFPN over a timm model, P3 to P7 by default."""
    return build_bifpn(cfg, build_timm_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_p37_resnet_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """BiFPN over detectron2's ResNet, P3 to P7 by default."""
    return build_bifpn(cfg, build_resnet_backbone(cfg, input_shape))


def _conv(in_channels: int, out_channels: int, size: int, norm: str) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
    )
    c2_xavier_fill(conv)
    return conv


def _check(inputs: int, channels: int, num_levels: int, num_layers: int, norm: str) -> None:
    if num_levels < max(inputs, 2):
        raise ConfigError(
            f"{num_levels} levels over {inputs} feature maps",
            where="MODEL.BIFPN.NUM_LEVELS",
            fix=f"at least {max(inputs, 2)}, or fewer MODEL.FPN.IN_FEATURES",
        )
    if num_layers < 1:
        raise ConfigError(f"{num_layers} repeats", where="MODEL.BIFPN.NUM_BIFPN", fix="at least 1")
    if norm == "GN" and channels % _GN_GROUPS:
        raise ConfigError(
            f"{channels} channels do not divide into the {_GN_GROUPS} groups of NORM GN",
            where="MODEL.BIFPN.OUT_CHANNELS",
            fix=f"a multiple of {_GN_GROUPS}, or another NORM",
        )
