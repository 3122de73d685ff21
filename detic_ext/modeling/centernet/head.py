"""The convolutions that CenterNet runs on every pyramid level.

Shapes: N images, C channels, K classes, H and W cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.modeling.centernet.deformable import DeformableConv


@dataclass(frozen=True)
class HeadOptions:
    """Layers of the head.

    Args:
        num_classes: channels of the class heatmap; 0 = no class heatmap.
        agnostic: with a class-agnostic heatmap.
        share_convs: convolutions before the towers.
        cls_convs: of the class tower.
        box_convs: of the box tower, which also feeds the class-agnostic heatmap.
        norm: ``GN``, another norm of detectron2, or empty.
        deformable: the last convolution of each tower is deformable.
        prior_prob: initial score of the heatmaps.
    """

    num_classes: int = 80
    agnostic: bool = False
    share_convs: int = 0
    cls_convs: int = 4
    box_convs: int = 4
    norm: str = "GN"
    deformable: bool = False
    prior_prob: float = 0.01

    @classmethod
    def from_config(cls, cfg: CfgNode) -> HeadOptions:
        """Read ``MODEL.CENTERNET``."""
        node = cfg.MODEL.CENTERNET
        return cls(
            num_classes=0 if node.ONLY_PROPOSAL else node.NUM_CLASSES,
            agnostic=node.WITH_AGN_HM,
            share_convs=node.NUM_SHARE_CONVS,
            cls_convs=0 if node.ONLY_PROPOSAL else node.NUM_CLS_CONVS,
            box_convs=node.NUM_BOX_CONVS,
            norm=node.NORM,
            deformable=node.USE_DEFORMABLE,
            prior_prob=node.PRIOR_PROB,
        )


class LevelScale(nn.Module):
    """A learned factor; state-dict key ``scale``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` times the factor."""
        return x * self.scale


class CenterNetHead(nn.Module):
    """Towers and predictions shared by all levels.

    Args:
        channels: C of every level.
        num_levels: number of levels (one box scale each).
        options: see :class:`HeadOptions`.
    """

    def __init__(self, channels: int, num_levels: int, options: HeadOptions) -> None:
        super().__init__()
        self.options = options
        self.share_tower = _tower(channels, options.share_convs, options)
        self.cls_tower = _tower(channels, options.cls_convs, options)
        self.bbox_tower = _tower(channels, options.box_convs, options)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.scales = nn.ModuleList(LevelScale() for _ in range(num_levels))
        self.agn_hm = nn.Conv2d(channels, 1, 3, padding=1) if options.agnostic else None
        self.cls_logits = (
            nn.Conv2d(channels, options.num_classes, 3, padding=1) if options.num_classes else None
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.bbox_pred.bias, 8.0)  # type: ignore[arg-type]
        prior = -math.log((1 - options.prior_prob) / options.prior_prob)
        for heatmap in (self.agn_hm, self.cls_logits):
            if heatmap is not None:
                nn.init.constant_(heatmap.bias, prior)  # type: ignore[arg-type]

    def forward(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor] | None, list[Tensor] | None]:
        """Run all levels.

        Args:
            features: per level [N, C, H, W].

        Returns:
            per level: box distances [N, 4, H, W] (left, top, right, bottom in strides, not
            negative); class-agnostic logits [N, 1, H, W] or None; class logits [N, K, H, W] or
            None.
        """
        boxes: list[Tensor] = []
        agnostic: list[Tensor] = []
        classes: list[Tensor] = []
        for scale, level_NCHW in zip(self.scales, features, strict=True):
            shared = self.share_tower(level_NCHW)
            tower = self.bbox_tower(shared)
            boxes.append(F.relu(scale(self.bbox_pred(tower))))
            if self.agn_hm is not None:
                agnostic.append(self.agn_hm(tower))
            if self.cls_logits is not None:
                classes.append(self.cls_logits(self.cls_tower(shared)))
        return boxes, agnostic or None, classes or None


def _tower(channels: int, depth: int, options: HeadOptions) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        if options.deformable and index == depth - 1:
            layers.append(DeformableConv(channels))
        else:
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        if options.norm == "GN":
            layers.append(nn.GroupNorm(_groups(channels), channels))
        elif options.norm:
            layers.append(get_norm(options.norm, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _groups(channels: int) -> int:
    """Groups of the norm: 32, else 25, else the most that divide the channels."""
    return next(n for n in (32, 25, math.gcd(32, channels)) if channels % n == 0)
