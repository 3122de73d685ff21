"""timm models as detectron2 backbones.

Shape suffixes: N images, C channels, H and W rows and columns of an image or feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.models import FeatureInfo
from torch import nn

from ext_common.errors import ConfigError
from ext_common.modeling.norms import convert_norms
from ext_common.modeling.timm_models import check_levels, create_timm_model, to_nchw

_STEM = ("conv1", "bn1")
_RESNET_PARTS = (*_STEM, "layer1", "layer2")


class TimmBackbone(Backbone):
    """Feature maps of a timm model under the names ``layer{level}`` (detic spec 1.1).

    Args:
        base: a model of :func:`create_timm_model`, or any timm model: one built with
            ``features_only`` and ``out_indices`` = levels - 1, or a whole one that has
            ``forward_intermediates`` (what it does not need, like a classifier, stays in it).
        out_levels: 1-based positions in the model's ``feature_info``.
        norm: ``FrozenBN``, ``BN`` or ``SyncBN``.
        freeze_at: 1 freezes the stem, 2 and more also layer1; ResNets only.

    Raises:
        ConfigError: levels that the model does not give, an unknown norm, or ``freeze_at`` with a
            model that is no ResNet.
    """

    @configurable
    def __init__(
        self,
        *,
        base: nn.Module,
        out_levels: Sequence[int],
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        levels = check_levels(out_levels)
        info: Any = base.feature_info
        self._whole_model = not isinstance(info, FeatureInfo)
        if self._whole_model:
            info = FeatureInfo(info, tuple(range(len(info))))
        self._indices = [level - 1 for level in levels]
        missing = [level for level in levels if level - 1 not in info.out_indices]
        if missing or (not self._whole_model and len(info.out_indices) != len(levels)):
            given = [index + 1 for index in info.out_indices]
            raise ConfigError(
                f"levels {list(levels)} of a model that gives {given}",
                where="MODEL.TIMM.OUT_LEVELS",
            )
        self._out_features = [f"layer{level}" for level in levels]
        shapes = zip(self._out_features, self._indices, strict=True)
        self._shapes = {
            name: ShapeSpec(channels=info.channels(index), stride=info.reduction(index))
            for name, index in shapes
        }
        self.base = convert_norms(base, norm)
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Translate ``MODEL.TIMM``."""
        options = cfg.MODEL.TIMM
        base = create_timm_model(
            options.BASE_NAME,
            out_levels=options.OUT_LEVELS,
            pretrained=options.PRETRAINED,
            # they are loaded after timm's and must cover the model
            weights_follow=bool(cfg.MODEL.WEIGHTS),
            in_channels=input_shape.channels,
        )
        return {
            "base": base,
            "out_levels": options.OUT_LEVELS,
            "norm": options.NORM,
            "freeze_at": options.FREEZE_AT,
        }

    @property
    def size_divisibility(self) -> int:
        """The largest stride: batches are padded to multiples of it."""
        return max(shape.stride for shape in self._shapes.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output."""
        return dict(self._shapes)

    def forward(self, images_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature maps [N, C, H / stride, W / stride] by name, finest first."""
        if self._whole_model:
            extract: Any = self.base.forward_intermediates
            features = extract(images_NCHW, indices=self._indices, intermediates_only=True)
        else:
            features = [to_nchw(self.base, map_) for map_ in self.base(images_NCHW)]
        return dict(zip(self._out_features, features, strict=True))

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at <= 0:
            return
        if not all(hasattr(self.base, part) for part in _RESNET_PARTS):
            raise ConfigError(
                f"{freeze_at} with a model that is no ResNet",
                where="MODEL.TIMM.FREEZE_AT",
                fix="set it to 0",
            )
        for part in _STEM if freeze_at == 1 else (*_STEM, "layer1"):
            module = convert_norms(getattr(self.base, part), "FrozenBN")
            module.requires_grad_(False)
            self.base.add_module(part, module)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model of ``MODEL.TIMM`` alone."""
    return TimmBackbone(cfg, input_shape)
