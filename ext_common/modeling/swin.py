"""Swin Transformer as detectron2 backbone (Liu et al. 2021; detic spec 1.1).

Shape suffixes: N images, C channels, H and W rows and columns of an image or feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from timm.layers import PatchEmbed, trunc_normal_
from torch import Tensor, nn

from ext_common.errors import ConfigError
from ext_common.modeling.bifpn import BiFPN, build_bifpn
from ext_common.modeling.fpn import build_fpn
from ext_common.modeling.swin_blocks import SwinStage

_PATCH = 4


@dataclass(frozen=True)
class SwinSize:
    """Dimensions of a Swin Transformer.

    Args:
        channels: of the first stage; every stage has twice those of the one before.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: tokens along the side of a window.
        drop_path: share of residual branches dropped in the last block; it rises from 0.
    """

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    drop_path: float = 0.0


_T = SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.2)
_B = SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), drop_path=0.3)
_L = SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), drop_path=0.3)


def swin_size(name: str) -> SwinSize:
    """Dimensions of ``T``, ``S``, ``B``, ``B-22k``, ``B-22k-384``, ``L-22k`` or ``L-22k-384``.

    Raises:
        ConfigError: another name.
    """
    sizes = {
        "T": _T,
        "S": replace(_T, depths=(2, 2, 18, 2)),
        "B": _B,
        "B-22k": _B,
        "B-22k-384": replace(_B, window=12),
        "L-22k": _L,
        "L-22k-384": replace(_L, window=12),
    }
    if name not in sizes:
        raise ConfigError(
            f"unknown size {name!r}", where="MODEL.SWIN.SIZE", fix=f"one of {', '.join(sizes)}"
        )
    return sizes[name]


class SwinTransformer(Backbone):
    """Feature maps ``swin{i}`` of the stages, each with a LayerNorm of its own.

    Keys of the state dict are those of published checkpoints. Set the environment variable
    ``TIMM_FUSED_ATTN=2`` before the start for timm's fused attention.

    Args:
        size: dimensions.
        out_features: stages given, 0-based and rising; stage i has stride 4 * 2^i.
        in_channels: channels of the image.
        use_checkpoint: recompute the blocks in the backward pass: less memory, more time.

    Raises:
        ConfigError: stages that do not exist or do not rise.
    """

    @configurable
    def __init__(
        self,
        *,
        size: SwinSize,
        out_features: Sequence[int] = (1, 2, 3),
        in_channels: int = 3,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        stages = len(size.depths)
        self._out_indices = _checked_stages(out_features, stages)
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=_PATCH,
            in_chans=in_channels,
            embed_dim=size.channels,
            norm_layer=nn.LayerNorm,
            output_fmt="NHWC",
            dynamic_img_pad=True,
        )
        rates = torch.linspace(0, size.drop_path, sum(size.depths), device="cpu").tolist()
        self.layers = nn.ModuleList(
            SwinStage(
                size.channels * 2**index,
                size.heads[index],
                window=size.window,
                drop_paths=rates[sum(size.depths[:index]) : sum(size.depths[: index + 1])],
                merge=index + 1 < stages,
                use_checkpoint=use_checkpoint,
            )
            for index in range(stages)
        )
        self._shapes = {
            f"swin{index}": ShapeSpec(channels=size.channels * 2**index, stride=_PATCH * 2**index)
            for index in self._out_indices
        }
        self._out_features = list(self._shapes)
        for index in self._out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(size.channels * 2**index))
        self.apply(_initialize)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Translate ``MODEL.SWIN``."""
        options = cfg.MODEL.SWIN
        return {
            "size": swin_size(options.SIZE),
            "out_features": options.OUT_FEATURES,
            "in_channels": input_shape.channels,
            "use_checkpoint": options.USE_CHECKPOINT,
        }

    @property
    def optional_weights(self) -> tuple[str, ...]:
        """Patterns of weights that a file may lack: a classifier has none of the outputs' norms."""
        return tuple(f"norm{index}.*" for index in self._out_indices)

    @property
    def size_divisibility(self) -> int:
        """The largest stride: batches are padded to multiples of it (any size is accepted)."""
        return max(shape.stride for shape in self._shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output."""
        return dict(self._shapes)

    def forward(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """Feature maps [N, C, ceil(H / stride), ceil(W / stride)] by name, finest first.

        They are channels-last in memory.
        """
        x_NHWC = self.patch_embed(images_NCHW)
        features: dict[str, Tensor] = {}
        for index, stage in enumerate(self.layers):
            tokens_NHWC, x_NHWC = stage(x_NHWC)
            if index in self._out_indices:
                normed_NHWC = self.get_submodule(f"norm{index}")(tokens_NHWC)
                features[f"swin{index}"] = normed_NHWC.permute(0, 3, 1, 2)
            if index == self._out_indices[-1]:
                break  # nothing reads the stages beyond
        return features


def _checked_stages(out_features: Sequence[int], stages: int) -> tuple[int, ...]:
    chosen = tuple(out_features)
    inside = all(0 <= index < stages for index in chosen)
    if not chosen or not inside or list(chosen) != sorted(set(chosen)):
        raise ConfigError(
            f"stages {chosen} are not rising numbers from 0 to {stages - 1}",
            where="MODEL.SWIN.OUT_FEATURES",
            fix="for example (1, 2, 3)",
        )
    return chosen


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_swintransformer_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """The Swin Transformer of ``MODEL.SWIN`` alone."""
    return SwinTransformer(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_swintransformer_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over it, with P6 and P7."""
    return build_fpn(cfg, build_swintransformer_backbone(cfg, input_shape), with_p6p7=True)


@BACKBONE_REGISTRY.register()
def build_swintransformer_bifpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> BiFPN:
    """BiFPN over it, as ``MODEL.BIFPN`` says."""
    return build_bifpn(cfg, build_swintransformer_backbone(cfg, input_shape))
