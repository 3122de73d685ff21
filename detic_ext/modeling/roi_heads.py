"""Detic's ROI heads (specification sections 1.3 and 1.4).

Shapes: N images, R regions of a batch, F features of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, ROIHeads
from detectron2.modeling.roi_heads.box_head import build_box_head
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import Boxes
from torch import Tensor, nn

from detic_ext.modeling.head_options import DeticHeadOptions
from detic_ext.modeling.mixed_roi_heads import MixedROIHeads
from detic_ext.modeling.predictor import DeticPredictor
from detic_ext.modeling.predictor_config import build_predictors
from ext_common.errors import ConfigError
from ext_common.modeling.roi_pooler import build_roi_pooler
from ext_common.modeling.scale_gradient import scale_gradient


@ROI_HEADS_REGISTRY.register()
class DeticCascadeROIHeads(MixedROIHeads):
    """Cascade of class-agnostic box heads with zero-shot classifiers.

    Args:
        box_pooler: ROI pooler over the feature maps.
        box_heads: one per stage: pooled features -> [R, F].
        box_predictors: one per stage.
        mask_pooler: None = no masks.
        mixed: the arguments of :class:`~detic_ext.modeling.mixed_roi_heads.MixedROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[DeticPredictor],
        mask_pooler: ROIPooler | None = None,
        **mixed: Any,
    ) -> None:
        super().__init__(**mixed)
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.mask_pooler = mask_pooler

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        ious, weights = cls._stages(cfg)
        pooler, pooled = _pooler_and_shape(cfg.MODEL.ROI_BOX_HEAD, names, input_shape)
        box_heads = [build_box_head(cfg, pooled) for _ in ious]
        predictors, vocabulary = build_predictors(cfg, _size(box_heads[0].output_shape), weights)
        arguments = _common_arguments(cfg, ious)
        arguments.update(
            num_classes=predictors[0].num_classes,
            box_pooler=pooler,
            box_heads=box_heads,
            box_predictors=predictors,
            vocabulary=vocabulary,
        )
        if cfg.MODEL.MASK_ON:
            mask_pooler, mask_shape = _pooler_and_shape(cfg.MODEL.ROI_MASK_HEAD, names, input_shape)
            arguments.update(mask_pooler=mask_pooler, mask_head=build_mask_head(cfg, mask_shape))
        return arguments

    @classmethod
    def _stages(cls, cfg: CfgNode) -> tuple[list[float], list[tuple[float, ...]]]:
        """Matching IoU and box regression weights of each stage."""
        node = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        # the first stage matches as ROI_HEADS.IOU_THRESHOLDS says, as in detectron2
        ious = [cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0], *node.IOUS[1:]]
        return ious, [tuple(weights) for weights in node.BBOX_REG_WEIGHTS]

    @property
    def predictors(self) -> list[DeticPredictor]:
        """The stages' predictors."""
        return [cast("DeticPredictor", predictor) for predictor in self.box_predictor]

    def _box_features(self, maps: list[Tensor], boxes: list[Boxes], stage: int) -> Tensor:
        pooled = self.box_pooler(maps, boxes)
        # the losses of the stages are added, so the gradient into the shared maps is averaged
        features_RF: Tensor = self.box_head[stage](scale_gradient(pooled, 1.0 / self.num_stages))
        return features_RF

    def _mask_features(self, maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
        pooled: Tensor = cast("ROIPooler", self.mask_pooler)(maps, boxes)
        return pooled


@ROI_HEADS_REGISTRY.register()
class DeticROIHeads(DeticCascadeROIHeads):
    """The single-stage form: one box head, matched as ``ROI_HEADS.IOU_THRESHOLDS`` says."""

    @classmethod
    def _stages(cls, cfg: CfgNode) -> tuple[list[float], list[tuple[float, ...]]]:
        weights = tuple(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        return [cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]], [weights]


@ROI_HEADS_REGISTRY.register()
class CustomRes5ROIHeads(MixedROIHeads):
    """One stage over a C4 feature map: ROI pooling, the last ResNet stage, and a mean.

    Its predictor has no stage number in parameter names, nor have the losses.

    Args:
        pooler: ROI pooler over the one feature map.
        res5: pooled features -> [R, F, h, w].
        box_predictor: the only stage's.
        mixed: the arguments of :class:`~detic_ext.modeling.mixed_roi_heads.MixedROIHeads`.
    """

    @configurable
    def __init__(
        self, *, pooler: ROIPooler, res5: nn.Module, box_predictor: DeticPredictor, **mixed: Any
    ) -> None:
        super().__init__(**mixed)
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments.

        Raises:
            ConfigError: several feature maps.
        """
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        if len(names) != 1:
            raise ConfigError(
                f"one feature map is needed, got {names}",
                where="MODEL.ROI_HEADS.IN_FEATURES",
                fix="['res4'] over build_resnet_backbone",
            )
        pooler, pooled = _pooler_and_shape(cfg.MODEL.ROI_BOX_HEAD, names, input_shape)
        res5, width = Res5ROIHeads._build_res5_block(cfg)
        weights = tuple(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        (predictor,), vocabulary = build_predictors(cfg, width, [weights])
        arguments = _common_arguments(cfg, [cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]])
        arguments.update(
            num_classes=predictor.num_classes,
            pooler=pooler,
            res5=res5,
            box_predictor=predictor,
            vocabulary=vocabulary,
        )
        if cfg.MODEL.MASK_ON:
            shape = ShapeSpec(channels=width, width=pooled.width, height=pooled.height)
            arguments.update(mask_head=build_mask_head(cfg, shape))
        return arguments

    @property
    def predictors(self) -> list[DeticPredictor]:
        """The one predictor."""
        return [self.box_predictor]

    def _named(self, name: str, stage: int) -> str:
        return name

    def _box_features(self, maps: list[Tensor], boxes: list[Boxes], stage: int) -> Tensor:
        return self._mask_features(maps, boxes).mean(dim=(2, 3))

    def _mask_features(self, maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
        features_RFhw: Tensor = self.res5(self.pooler(maps, boxes))
        return features_RFhw


def _common_arguments(cfg: CfgNode, ious: Sequence[float]) -> dict[str, Any]:
    """What all heads take from a configuration."""
    arguments: dict[str, Any] = ROIHeads.from_config(cfg)
    arguments.pop("proposal_matcher")
    arguments.update(
        box_in_features=list(cfg.MODEL.ROI_HEADS.IN_FEATURES),
        proposal_matchers=[Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in ious],
        options=DeticHeadOptions.from_config(cfg),
    )
    return arguments


def _size(shape: ShapeSpec) -> int:
    """Numbers per region of a box head's output."""
    width: int = shape.channels * (shape.width or 1) * (shape.height or 1)
    return width


def _pooler_and_shape(
    node: CfgNode, names: Sequence[str], input_shape: dict[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """ROI pooler over the named maps and the shape of what it gives."""
    size = node.POOLER_RESOLUTION
    shape = ShapeSpec(channels=input_shape[names[0]].channels, height=size, width=size)
    return build_roi_pooler(node, names, input_shape), shape
