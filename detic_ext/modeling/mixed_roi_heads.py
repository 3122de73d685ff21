"""Stages of ROI heads under box, image-label and caption supervision (specification section 4).

What a stage computes from a region is left to the subclasses in :mod:`detic_ext.modeling.roi_heads`.

Shapes: N images, R regions of a batch, C foreground classes, F features of a region.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from detic_ext.modeling.box_inference import detect, fuse_scores, proposal_probabilities
from detic_ext.modeling.head_options import DeticHeadOptions
from detic_ext.modeling.predictor import DeticPredictor
from detic_ext.modeling.stage_targets import label_proposals, refine_proposals
from detic_ext.modeling.supervision import PROPOSAL_TYPES, Supervision
from detic_ext.modeling.weak_proposals import select_weak_proposals, zero_through
from ext_common.vocabulary import Vocabulary


class MixedROIHeads(ROIHeads):
    """Base of Detic's heads: losses of every kind of batch, refinement, and fused detections.

    Args:
        box_in_features: names of the feature maps.
        proposal_matchers: one per stage; the first one labels the sampled proposals.
        mask_head: None = no masks.
        vocabulary: what the classifiers were built from.
        options: see :class:`~detic_ext.modeling.head_options.DeticHeadOptions`.
        sampling: detectron2's ROIHeads arguments.
    """

    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        proposal_matchers: Sequence[Matcher],
        mask_head: nn.Module | None = None,
        vocabulary: Vocabulary | None = None,
        options: DeticHeadOptions | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__(proposal_matcher=proposal_matchers[0], **sampling)
        self.in_features = self.box_in_features = list(box_in_features)
        self.proposal_matchers = list(proposal_matchers)
        self.mask_head = mask_head
        self.vocabulary = vocabulary
        self.options = options or DeticHeadOptions()

    @property
    @abstractmethod
    def predictors(self) -> list[DeticPredictor]:
        """The stages' predictors."""

    @abstractmethod
    def _box_features(self, maps: list[Tensor], boxes: list[Boxes], stage: int) -> Tensor:
        """Features [R, F] of the regions of all images, for one stage."""

    @abstractmethod
    def _mask_features(self, maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """What the mask head sees of the regions of all images."""

    def _named(self, name: str, stage: int) -> str:
        """Name of a stage's loss."""
        return f"{name}_stage{stage}"

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.predictors)

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
        if supervision.ann_type in PROPOSAL_TYPES:
            return proposals, self._no_losses()
        if supervision.ann_type == "box":
            if targets is None:
                raise ValueError("box batches need targets")
            proposals = self.label_and_sample_proposals(proposals, targets)
            losses = self._box_losses(maps, proposals, targets, supervision)
            losses.update(self._mask_losses(maps, proposals, shown=len(targets[0]) > 0))
        else:
            proposals = select_weak_proposals(
                proposals,
                limit=self.options.weak_proposals,
                image_box_share=self.options.image_box_share,
            )
            losses = self._weak_losses(maps, proposals, supervision)
        return proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` to detections that have ``pred_boxes`` and ``pred_classes``."""
        if self.mask_head is None:
            return instances
        maps = [features[name] for name in self.box_in_features]
        seen = self._mask_features(maps, [found.pred_boxes for found in instances])
        masked: list[Instances] = self.mask_head(seen, instances)
        return masked

    def _stage_features(
        self, maps: list[Tensor], proposals: Sequence[Instances], stage: int
    ) -> Tensor:
        features_RF = self._box_features(maps, [found.proposal_boxes for found in proposals], stage)
        if self.training and self.options.keep_features and stage == 0:
            counts = [len(found) for found in proposals]
            for found, part in zip(proposals, features_RF.detach().split(counts), strict=True):
                found.feat = part
        return features_RF

    def _moved_boxes(
        self, predictor: DeticPredictor, deltas_R4: Tensor, proposals: Sequence[Instances]
    ) -> list[Tensor]:
        boxes_R4 = torch.cat([found.proposal_boxes.tensor for found in proposals])
        moved_R4 = predictor.box2box_transform.apply_deltas(deltas_R4, boxes_R4)
        return list(moved_R4.split([len(found) for found in proposals]))

    def _box_losses(
        self,
        maps: list[Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        supervision: Supervision,
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
            stage_losses = predictor.box_losses(
                features_RF,
                deltas_R4,
                proposals,
                num_objects=num_objects,
                subset=supervision.subset,
            )
            if self.options.with_image_labels:
                stage_losses["image_loss"] = features_RF.new_zeros(())
            for name, value in stage_losses.items():
                losses[self._named(name, stage)] = value
            if stage + 1 < self.num_stages:
                boxes = self._moved_boxes(predictor, deltas_R4.detach(), proposals)
        return losses

    def _weak_losses(
        self, maps: list[Tensor], proposals: list[Instances], supervision: Supervision
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        for stage, predictor in enumerate(self.predictors):
            if stage > 0:
                proposals = refine_proposals(proposals, boxes, drop_empty=True)
            features_RF = self._stage_features(maps, proposals, stage)
            zero = features_RF.new_zeros(())
            if stage == 0 or self.options.weak_all_stages:
                with get_event_storage().name_scope(f"stage{stage}"):
                    image_loss = predictor.image_label_loss(features_RF, proposals, supervision)
            else:
                image_loss = zero + features_RF.sum() * 0.0 + zero_through([predictor])
            losses[self._named("loss_cls", stage)] = zero
            unused = zero + zero_through([predictor.bbox_pred])
            losses[self._named("loss_box_reg", stage)] = unused
            losses[self._named("image_loss", stage)] = image_loss
            if stage + 1 < self.num_stages:
                with torch.no_grad():
                    boxes = self._moved_boxes(predictor, predictor.regress(features_RF), proposals)
        if self.mask_head is not None:
            losses["loss_mask"] = maps[0].new_zeros(()) + zero_through([self.mask_head])
        return losses

    def _mask_losses(
        self, maps: list[Tensor], proposals: list[Instances], *, shown: bool
    ) -> dict[str, Tensor]:
        """Mask loss of the images that have masks.

        Args:
            maps: feature maps.
            proposals: sampled, with ground truth.
            shown: the batch's first image shows an object; matters with ``masks_need_first_image``.
        """
        if self.mask_head is None:
            return {}
        # an image without masks, the first one too, does not silence the others
        annotated = [index for index, found in enumerate(proposals) if found.has("gt_masks")]
        if not annotated or (self.options.masks_need_first_image and not shown):
            return {"loss_mask": maps[0].new_zeros(()) + zero_through([self.mask_head])}
        foreground, _ = select_foreground_proposals(
            [proposals[index] for index in annotated], self.num_classes
        )
        if len(annotated) < len(proposals):
            index = torch.tensor(annotated, device=maps[0].device)
            maps = [feats_NCHW.index_select(0, index) for feats_NCHW in maps]
        seen = self._mask_features(maps, [found.proposal_boxes for found in foreground])
        loss = self.mask_head(seen, foreground)["loss_mask"]
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
        names = ["loss_cls", "loss_box_reg"]
        if self.options.with_image_labels:
            names.append("image_loss")
        zero = zero_through([self])
        zero = zero if isinstance(zero, Tensor) else torch.zeros(())
        losses = {
            self._named(name, stage): zero for stage in range(self.num_stages) for name in names
        }
        if self.mask_head is not None:
            losses["loss_mask"] = zero
        return losses
