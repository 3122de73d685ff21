"""Region heads over CLIP's image encoder (specification 2.3 and 4).

The last stage and the attention pool are the backbone's: the head only borrows them, so that their
parameters keep CLIP's names.

Legend: R regions of a batch, C channels, S side of the attention pool's maps, D joint embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ext_common.errors import ConfigError
from ext_common.hooks import LOG_PERIOD
from ext_common.modeling.roi_pooler import build_roi_pooler
from regionclip_ext.modeling.clip_resnet import ClipResNet
from regionclip_ext.modeling.encoder_shapes import encoder_shape
from regionclip_ext.modeling.predictor import ClipPredictor

MOST_FOREGROUND = 128
"""Regions per image with ONLY_SAMPLE_FG_PROPOSALS."""

Features = dict[str, Tensor]


@ROI_HEADS_REGISTRY.register()
class CLIPRes5ROIHeads(ROIHeads):
    """C4 head: ROIAlign, the encoder's last stage, attention pool, cosine classifier.

    Args:
        in_features: names of the feature maps.
        pooler: ROI pooler over them.
        box_predictor: :class:`~regionclip_ext.modeling.predictor.ClipPredictor`, or detectron2's
            for a plain baseline.
        attention: embed regions with the attention pool; otherwise their maps are averaged.
        mask_head: None = no masks.
        mask_pooler: pooler of the mask head; None = it shares the box head's maps.
        only_foreground: train on foreground regions alone.
        roi: arguments of detectron2's ROIHeads.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        box_predictor: FastRCNNOutputLayers,
        attention: bool = True,
        mask_head: nn.Module | None = None,
        mask_pooler: ROIPooler | None = None,
        only_foreground: bool = False,
        **roi: Any,
    ) -> None:
        super().__init__(**roi)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.box_predictor = box_predictor
        self.attention = attention
        self.mask_head = mask_head
        self.mask_pooler = mask_pooler
        self.only_foreground = only_foreground
        self._encoder: tuple[ClipResNet, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments.

        Raises:
            ConfigError: several feature maps, or class embeddings that do not fit.
        """
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        if len(names) != 1:
            raise ConfigError(
                f"one feature map is needed, got {names}",
                where="MODEL.ROI_HEADS.IN_FEATURES",
                fix="['res4'] over build_clip_resnet_backbone",
            )
        shape = encoder_shape(cfg)
        arguments = _common_arguments(cfg, 8 * 4 * shape.width)
        size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        arguments["pooler"] = build_roi_pooler(cfg.MODEL.ROI_BOX_HEAD, names, input_shape)
        if cfg.MODEL.MASK_ON:
            maps = ShapeSpec(channels=8 * 4 * shape.width, height=size, width=size)
            arguments["mask_head"] = build_mask_head(cfg, maps)
        return arguments

    def attach(self, backbone: Backbone) -> None:
        """Borrow last stage and attention pool from the detector's backbone (or its FPN's).

        Raises:
            ConfigError: no CLIP encoder, or one without the attention pool that is needed.
        """
        encoder = getattr(backbone, "bottom_up", backbone)
        if not isinstance(encoder, ClipResNet) or (self.attention and encoder.attnpool is None):
            raise ConfigError(
                f"{type(self).__name__} cannot work with {type(encoder).__name__}",
                where="MODEL.BACKBONE.NAME",
                fix="build_clip_resnet_backbone, with MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER",
            )
        self._encoder = (encoder,)  # a tuple, so that it is not registered twice

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        *,
        classifier: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Losses in training, detections otherwise.

        Args:
            images: unused.
            features: maps of the backbone.
            proposals: per image ``proposal_boxes`` and ``objectness_logits``.
            targets: ground truth, in training.
            classifier: class embeddings [C, D] for this call (inference).
        """
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        maps_RCSS = self.region_maps(features, [p.proposal_boxes for p in proposals])
        x_RD = self.embed(maps_RCSS)
        if not self.training:
            given = () if classifier is None else (classifier,)
            predictions = self.box_predictor(x_RD, *given)
            found, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, found), {}
        predictions = self.box_predictor(x_RD)
        if isinstance(self.box_predictor, ClipPredictor):  # detectron2's own predictor logs itself
            _log_classes(predictions[0], proposals)
        losses: dict[str, Tensor] = self.box_predictor.losses(predictions, proposals)
        if self.mask_head is not None:
            losses.update(self._mask_losses(self.mask_head, features, maps_RCSS, proposals))
        return [], losses

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Add masks to detections, where there is a mask head."""
        if self.mask_head is None:
            return instances
        maps = self._mask_maps(features, [i.pred_boxes for i in instances])
        with_masks: list[Instances] = self.mask_head(maps, instances)
        return with_masks

    def region_maps(self, features: Features, boxes: list[Boxes]) -> Tensor:
        """``[R, C, S, S]`` maps of boxes, after the encoder's last stage."""
        pooled = self.pooler([features[name] for name in self.in_features], boxes)
        return self._clip.last_stage(pooled)

    def embed(self, maps_RCSS: Tensor) -> Tensor:
        """Un-normalised region embeddings ``[R, D]``; means ``[R, C]`` without attention."""
        if not self.attention:
            return maps_RCSS.mean(dim=(2, 3))
        pool = self._clip.attnpool
        assert pool is not None  # attach() saw to it
        embeddings_RD: Tensor = pool(maps_RCSS)
        return embeddings_RD

    @property
    def _clip(self) -> ClipResNet:
        if not self._encoder:
            raise ConfigError(
                "the head was not given its encoder",
                where="MODEL.META_ARCHITECTURE",
                fix="CLIPFastRCNN, or ext_common's build_model for GeneralizedRCNN",
            )
        return self._encoder[0]

    def _mask_maps(self, features: Features, boxes: list[Boxes]) -> Tensor:
        if self.mask_pooler is None:
            return self.region_maps(features, boxes)
        pooled: Tensor = self.mask_pooler([features[name] for name in self.in_features], boxes)
        return pooled

    def _mask_losses(
        self,
        mask_head: nn.Module,
        features: Features,
        maps_RCSS: Tensor,
        proposals: list[Instances],
    ) -> dict[str, Tensor]:
        foreground, chosen = select_foreground_proposals(proposals, self.num_classes)
        if self.mask_pooler is None:  # the box head's maps will do
            maps = maps_RCSS[torch.cat(chosen)]
        else:
            maps = self._mask_maps(features, [p.proposal_boxes for p in foreground])
        losses: dict[str, Tensor] = mask_head(maps, foreground)
        return losses

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.only_foreground:
            sampled: tuple[Tensor, Tensor] = super()._sample_proposals(
                matched_idxs, matched_labels, gt_classes
            )
            return sampled
        background = torch.full_like(matched_idxs, self.num_classes)
        labels = background
        if gt_classes.numel() > 0:
            labels = torch.where(matched_labels == 1, gt_classes[matched_idxs], background)
        chosen = (labels != self.num_classes).nonzero()[:, 0]
        order = torch.randperm(len(chosen), device=chosen.device)[:MOST_FOREGROUND]
        chosen = chosen[order]
        if len(chosen) == 0:  # a batch without any region would have no loss
            chosen = torch.zeros(min(len(labels), 1), dtype=torch.int64, device=labels.device)
        return chosen, labels[chosen]


@ROI_HEADS_REGISTRY.register()
class CLIPStandardROIHeads(CLIPRes5ROIHeads):
    """FPN head: the attention pool works on pooled pyramid features, without the last stage.

    The pyramid needs as many channels as the last stage. No published recipe uses it.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments.

        Raises:
            ConfigError: a pyramid of another width than the attention pool.
        """
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        channels, needed = input_shape[names[0]].channels, 32 * encoder_shape(cfg).width
        if channels != needed and cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER:
            raise ConfigError(
                f"the attention pool takes {needed} channels, the pyramid has {channels}",
                where="MODEL.FPN.OUT_CHANNELS",
                fix=f"{needed}; or CLIPRes5ROIHeads over build_clip_resnet_backbone",
            )
        arguments = _common_arguments(cfg, channels)
        arguments["pooler"] = build_roi_pooler(cfg.MODEL.ROI_BOX_HEAD, names, input_shape)
        if cfg.MODEL.MASK_ON:
            node = cfg.MODEL.ROI_MASK_HEAD
            size = node.POOLER_RESOLUTION
            arguments["mask_pooler"] = build_roi_pooler(node, names, input_shape)
            maps = ShapeSpec(channels=channels, height=size, width=size)
            arguments["mask_head"] = build_mask_head(cfg, maps)
        return arguments

    def region_maps(self, features: Features, boxes: list[Boxes]) -> Tensor:
        """``[R, C, S, S]`` maps of boxes, from the pyramid."""
        pooled: Tensor = self.pooler([features[name] for name in self.in_features], boxes)
        return pooled


def _log_classes(logits_RK: Tensor, proposals: list[Instances]) -> None:
    """detectron2's shares of right classes (``fast_rcnn/*``), where counting may wait for the device."""
    if get_event_storage().iter % LOG_PERIOD == 0:
        labels_R = torch.cat([p.gt_classes for p in proposals])
        _log_classification_stats(logits_RK.detach(), labels_R)


def _common_arguments(cfg: CfgNode, channels: int) -> dict[str, Any]:
    """What both heads take from a configuration; ``channels`` of the maps without attention."""
    arguments: dict[str, Any] = ROIHeads.from_config(cfg)
    attention = cfg.MODEL.CLIP.USE_TEXT_EMB_CLASSIFIER
    if attention:
        predictor = ClipPredictor(cfg, encoder_shape(cfg).embed_dim)
    else:
        predictor = FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels))
    arguments.update(
        in_features=list(cfg.MODEL.ROI_HEADS.IN_FEATURES),
        box_predictor=predictor,
        num_classes=predictor.num_classes,
        attention=attention,
        only_foreground=cfg.MODEL.CLIP.ONLY_SAMPLE_FG_PROPOSALS,
    )
    return arguments
