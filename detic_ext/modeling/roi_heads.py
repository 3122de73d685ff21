"""ROI heads for box and image-label supervision (specification sections 1.3, 3 and 4).

Shapes: N images, R regions of a batch, C foreground classes, F features of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.roi_heads.box_head import build_box_head
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from detic_ext.modeling.box_inference import (
    InferenceOptions,
    detect,
    fuse_scores,
    proposal_probabilities,
)
from detic_ext.modeling.predictor import DeticPredictor
from detic_ext.modeling.predictor_config import build_predictors
from detic_ext.modeling.stage_targets import label_proposals, refine_proposals
from detic_ext.modeling.supervision import Supervision
from detic_ext.modeling.weak_proposals import select_weak_proposals, zero_through
from ext_common.modeling.scale_gradient import scale_gradient
from ext_common.vocabulary import Vocabulary


@dataclass(frozen=True)
class DeticHeadOptions:
    """Switches of the ROI heads.

    Args:
        mask_weight: factor of the mask loss.
        with_image_labels: every batch reports ``image_loss``, box batches a zero.
        weak_proposals: proposals used of an image without boxes.
        image_box_share: append a box over this share of such an image; None = do not.
        inference: how detections are kept.
    """

    mask_weight: float = 1.0
    with_image_labels: bool = False
    weak_proposals: int = 128
    image_box_share: float | None = None
    inference: InferenceOptions = field(default_factory=InferenceOptions)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DeticHeadOptions:
        """Read the options from a configuration."""
        box, heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return cls(
            mask_weight=heads.MASK_WEIGHT,
            with_image_labels=cfg.WITH_IMAGE_LABELS,
            weak_proposals=box.WS_NUM_PROPS,
            image_box_share=box.IMAGE_BOX_SIZE if box.ADD_IMAGE_BOX else None,
            inference=InferenceOptions(
                score_threshold=heads.SCORE_THRESH_TEST,
                nms_threshold=heads.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                multiply_proposal_score=box.MULT_PROPOSAL_SCORE,
                one_class_per_proposal=heads.ONE_CLASS_PER_PROPOSAL,
            ),
        )


@ROI_HEADS_REGISTRY.register()
class DeticCascadeROIHeads(ROIHeads):
    """Cascade of class-agnostic box heads with zero-shot classifiers.

    Args:
        box_in_features: names of the feature maps.
        box_pooler: ROI pooler over them.
        box_heads: one per stage: pooled features -> [R, F].
        box_predictors: one per stage.
        proposal_matchers: one per stage; the first one labels the sampled proposals.
        mask_pooler: None = no masks.
        mask_head: None = no masks.
        vocabulary: what the classifiers were built from.
        options: see :class:`DeticHeadOptions`.
        sampling: detectron2's ROIHeads arguments.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[DeticPredictor],
        proposal_matchers: Sequence[Matcher],
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        vocabulary: Vocabulary | None = None,
        options: DeticHeadOptions | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(proposal_matcher=proposal_matchers[0], **sampling)
        self.in_features = self.box_in_features = list(box_in_features)
        self.box_pooler = box_pooler
        self.box_head = nn.ModuleList(box_heads)
        self.box_predictor = nn.ModuleList(box_predictors)
        self.proposal_matchers = list(proposal_matchers)
        self.mask_pooler = mask_pooler
        self.mask_head = mask_head
        self.vocabulary = vocabulary
        self.options = options or DeticHeadOptions()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        arguments: dict[str, Any] = ROIHeads.from_config(cfg)
        arguments.pop("proposal_matcher")
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        ious, weights = cls._stages(cfg)
        pooler, pooled = _build_pooler(cfg.MODEL.ROI_BOX_HEAD, names, input_shape)
        box_heads = [build_box_head(cfg, pooled) for _ in ious]
        predictors, vocabulary = build_predictors(cfg, box_heads[0].output_shape, weights)
        arguments.update(
            num_classes=predictors[0].num_classes,
            box_in_features=names,
            box_pooler=pooler,
            box_heads=box_heads,
            box_predictors=predictors,
            proposal_matchers=[
                Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in ious
            ],
            vocabulary=vocabulary,
            options=DeticHeadOptions.from_config(cfg),
        )
        if cfg.MODEL.MASK_ON:
            mask_pooler, mask_shape = _build_pooler(cfg.MODEL.ROI_MASK_HEAD, names, input_shape)
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
    def num_stages(self) -> int:
        """Number of cascade stages."""
        return len(self.box_head)

    @property
    def predictors(self) -> list[DeticPredictor]:
        """The stages' predictors."""
        return [cast("DeticPredictor", predictor) for predictor in self.box_predictor]

    @property
    def embedding_dim(self) -> int | None:
        """Width of the class embeddings; None with an ordinary classifier."""
        return self.predictors[0].embedding_dim

    @property
    def normalizes_classifier(self) -> bool:
        """Whether the classifier compares directions only."""
        return self.predictors[0].normalizes_classifier

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        *,
        supervision: Supervision | None = None,
        classifier: Tensor | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Losses in training, detections otherwise.

        Args:
            images: the batch (sizes are read from the proposals).
            features: feature maps by name.
            proposals: per image ``proposal_boxes`` and ``objectness_logits``.
            targets: per image ground truth; training on boxes only.
            supervision: what the batch is annotated with; None = boxes.
            classifier: weights [D, C'+1] used instead of the built-in ones (inference).

        Returns:
            proposals or detections per image, and the losses by name (empty at inference).
        """
        del images
        maps = [features[name] for name in self.box_in_features]
        if not self.training:
            detections = self._detect(maps, proposals, classifier)
            return self.forward_with_given_boxes(features, detections), {}
        supervision = supervision or Supervision()
        if supervision.ann_type in ("prop", "proptag"):
            return proposals, self._no_losses()
        if supervision.ann_type == "box":
            if targets is None:
                raise ValueError("box batches need targets")
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._box_losses(maps, proposals, targets)
            losses.update(self._mask_losses(maps, proposals))
        else:
            proposals = select_weak_proposals(
                proposals,
                limit=self.options.weak_proposals,
                image_box_share=self.options.image_box_share,
            )
            losses = self._image_label_losses(maps, proposals, supervision)
        return proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` to detections that have ``pred_boxes`` and ``pred_classes``."""
        if self.mask_head is None or self.mask_pooler is None:
            return instances
        maps = [features[name] for name in self.box_in_features]
        pooled = self.mask_pooler(maps, [found.pred_boxes for found in instances])
        masked: list[Instances] = self.mask_head(pooled, instances)
        return masked

    def _stage_features(
        self, maps: list[Tensor], proposals: Sequence[Instances], stage: int
    ) -> Tensor:
        pooled = self.box_pooler(maps, [found.proposal_boxes for found in proposals])
        # the losses of the stages are added, so the gradient into the shared maps is averaged
        features_RF: Tensor = self.box_head[stage](scale_gradient(pooled, 1.0 / self.num_stages))
        return features_RF

    def _moved_boxes(
        self, predictor: DeticPredictor, deltas_R4: Tensor, proposals: Sequence[Instances]
    ) -> list[Tensor]:
        boxes_R4 = torch.cat([found.proposal_boxes.tensor for found in proposals])
        moved_R4 = predictor.box2box_transform.apply_deltas(deltas_R4, boxes_R4)
        return list(moved_R4.split([len(found) for found in proposals]))

    def _box_losses(
        self, maps: list[Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        num_objects = sum(len(target) for target in targets)
        for stage, predictor in enumerate(self.predictors):
            if stage > 0:
                proposals = refine_proposals(proposals, boxes, drop_empty=True)
                matcher = self.proposal_matchers[stage]
                label_proposals(proposals, targets, matcher, self.num_classes)
            features_RF = self._stage_features(maps, proposals, stage)
            deltas_R4 = predictor.regress(features_RF)
            with get_event_storage().name_scope(f"stage{stage}"):
                stage_losses = predictor.box_losses(
                    features_RF, deltas_R4, proposals, num_objects=num_objects
                )
            if self.options.with_image_labels:
                stage_losses["image_loss"] = features_RF.new_zeros(())
            losses.update(self._named(stage_losses, stage))
            boxes = self._moved_boxes(predictor, deltas_R4.detach(), proposals)
        return losses

    def _image_label_losses(
        self, maps: list[Tensor], proposals: list[Instances], supervision: Supervision
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        for stage, predictor in enumerate(self.predictors):
            if stage > 0:
                proposals = refine_proposals(proposals, boxes, drop_empty=True)
            features_RF = self._stage_features(maps, proposals, stage)
            with get_event_storage().name_scope(f"stage{stage}"):
                image_loss = predictor.image_label_loss(features_RF, proposals, supervision)
            zero = features_RF.new_zeros(())
            stage_losses = {
                "loss_cls": zero,
                "loss_box_reg": zero + zero_through([predictor.bbox_pred]),
                "image_loss": image_loss,
            }
            losses.update(self._named(stage_losses, stage))
            if stage + 1 < self.num_stages:
                with torch.no_grad():
                    boxes = self._moved_boxes(predictor, predictor.regress(features_RF), proposals)
        if self.mask_head is not None:
            losses["loss_mask"] = maps[0].new_zeros(()) + zero_through([self.mask_head])
        return losses

    def _mask_losses(self, maps: list[Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        if self.mask_head is None or self.mask_pooler is None:
            return {}
        unused = maps[0].new_zeros(()) + zero_through([self.mask_head])
        annotated = [index for index, found in enumerate(proposals) if found.has("gt_masks")]
        if not annotated:
            return {"loss_mask": unused}
        foreground, _ = select_foreground_proposals(
            [proposals[index] for index in annotated], self.num_classes
        )
        if len(annotated) < len(proposals):
            index = torch.tensor(annotated, device=maps[0].device)
            maps = [feats_NCHW.index_select(0, index) for feats_NCHW in maps]
        pooled = self.mask_pooler(maps, [found.proposal_boxes for found in foreground])
        loss = self.mask_head(pooled, foreground)["loss_mask"]
        return {"loss_mask": loss * self.options.mask_weight}

    def _detect(
        self, maps: list[Tensor], proposals: list[Instances], classifier: Tensor | None
    ) -> list[Instances]:
        counts = [len(found) for found in proposals]
        image_sizes = [found.image_size for found in proposals]
        stage_scores: list[tuple[Tensor, ...]] = []
        boxes: list[Tensor] = []
        first = proposals
        for stage, predictor in enumerate(self.predictors):
            if stage > 0:
                proposals = refine_proposals(proposals, boxes, drop_empty=False)
            features_RF = self._stage_features(maps, proposals, stage)
            probabilities_RK = predictor.probabilities(features_RF, classifier)
            stage_scores.append(probabilities_RK.split(counts))
            boxes = self._moved_boxes(predictor, predictor.regress(features_RF), proposals)
        options = self.options.inference
        fused = [
            fuse_scores(scores, proposal_score, options)
            for scores, proposal_score in zip(
                zip(*stage_scores, strict=True), proposal_probabilities(first), strict=True
            )
        ]
        return detect(boxes, fused, image_sizes, options)

    def _no_losses(self) -> dict[str, Tensor]:
        """The usual names with zeros, for batches that teach the proposal generator alone."""
        zero = self._zero()
        losses: dict[str, Tensor] = {}
        for stage in range(self.num_stages):
            named = {"loss_cls": zero, "loss_box_reg": zero}
            if self.options.with_image_labels:
                named["image_loss"] = zero
            losses.update(self._named(named, stage))
        if self.mask_head is not None:
            losses["loss_mask"] = zero
        return losses

    def _zero(self) -> Tensor:
        total = zero_through([self])
        return total if isinstance(total, Tensor) else torch.zeros(())

    def _named(self, losses: dict[str, Tensor], stage: int) -> dict[str, Tensor]:
        return {f"{name}_stage{stage}": value for name, value in losses.items()}


@ROI_HEADS_REGISTRY.register()
class DeticROIHeads(DeticCascadeROIHeads):
    """The single-stage form: one box head, matched as ``ROI_HEADS.IOU_THRESHOLDS`` says."""

    @classmethod
    def _stages(cls, cfg: CfgNode) -> tuple[list[float], list[tuple[float, ...]]]:
        weights = tuple(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        return [cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]], [weights]


def _build_pooler(
    node: CfgNode, names: Sequence[str], input_shape: dict[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """ROI pooler over the named maps and the shape of what it gives."""
    size = node.POOLER_RESOLUTION
    pooler = ROIPooler(
        output_size=size,
        scales=tuple(1.0 / input_shape[name].stride for name in names),
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        pooler_type=node.POOLER_TYPE,
    )
    return pooler, ShapeSpec(channels=input_shape[names[0]].channels, height=size, width=size)
