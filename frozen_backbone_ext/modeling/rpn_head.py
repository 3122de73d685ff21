"""RPN head whose convolutions are shared by the levels, and whose norms are not (spec 2.3).

Shape suffixes: N images, A anchors per position, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import Tensor, nn

from frozen_backbone_ext.modeling.part_options import PartOptions


@RPN_HEAD_REGISTRY.register()
class PerLevelNormRPNHead(nn.Module):
    """3x3 convolutions, each with one norm per level, then scores and box deltas.

    Args:
        in_channels: of every level.
        num_levels: pyramid levels.
        num_anchors: A, per position.
        box_dim: numbers per box.
        conv_dims: channels of the 3x3 convolutions; -1 keeps those of the level.
        parts: norm and activation.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_anchors: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (-1,),
        parts: PartOptions | None = None,
    ) -> None:
        super().__init__()
        parts = parts or PartOptions()
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = in_channels
        for dim in conv_dims:
            width = channels if dim == -1 else dim
            self.convs.append(nn.Conv2d(channels, width, 3, padding=1))
            norms = nn.ModuleList(parts.make_norm(width) for _ in range(num_levels))
            self.norms.append(norms)
            channels = width
        self.activation = parts.make_activation()
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, 1)
        for layer in (*self.convs, self.objectness_logits, self.anchor_deltas):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        """Translate ``MODEL.RPN`` and ``MODEL.DETECTOR_PARTS``."""
        options: dict[str, Any] = StandardRPNHead.from_config(cfg, input_shape)
        options["num_levels"] = len(input_shape)
        options["parts"] = PartOptions.from_config(cfg)
        return options

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Scores [N, A, H, W] and deltas [N, A * box_dim, H, W] of every level.

        Args:
            features: one map per level, in the order of the norms.
        """
        logits, deltas = [], []
        for level, map_NCHW in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                of_level: Any = norms
                map_NCHW = self.activation(of_level[level](conv(map_NCHW)))
            logits.append(self.objectness_logits(map_NCHW))
            deltas.append(self.anchor_deltas(map_NCHW))
        return logits, deltas
