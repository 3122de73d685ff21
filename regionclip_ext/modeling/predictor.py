"""Classifier by text embeddings, and box regressor (specification 4.2, 4.3 and 5.1).

Legend: R regions, D joint embedding, C classes, K = C + 1 columns, the background last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ext_common.vocabulary import Vocabulary
from regionclip_ext.losses.similarity import cosine_logits, unit_rows
from regionclip_ext.modeling.class_embeddings import (
    ClassEmbeddings,
    ConfiguredClasses,
    embeddings_of,
)
from regionclip_ext.modeling.detections import DetectionOptions, detect
from regionclip_ext.modeling.focal_scaling import RegionClassificationLoss
from regionclip_ext.modeling.score_fusion import fuse_objectness

Predictions = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ClipPredictorOptions:
    """How a :class:`ClipPredictor` scores.

    Args:
        temperature: tau, divides the cosine.
        learned_background: train the background embedding, which starts as zeros.
        background_weight: of the classification loss; None = 1.
        focal_gamma: exponent of focal scaling; None = none.
        keep_boxes: proposals are the boxes (NO_BOX_DELTA).
        multiply_objectness: rank by the geometric mean with the proposal's objectness.
        objectness_sigmoid: that of its score instead of the raw logit.
        report_class_score: give the class score before that mean.
        detections: thresholds.
    """

    temperature: float = 0.01
    learned_background: bool = False
    background_weight: float | None = None
    focal_gamma: float | None = None
    keep_boxes: bool = False
    multiply_objectness: bool = False
    objectness_sigmoid: bool = False
    report_class_score: bool = False
    detections: DetectionOptions = field(default_factory=DetectionOptions)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ClipPredictorOptions:
        """Translate config keys."""
        clip = cfg.MODEL.CLIP
        return cls(
            temperature=clip.CLSS_TEMP,
            learned_background=clip.LEARNED_BACKGROUND,
            background_weight=clip.BG_CLS_LOSS_WEIGHT,
            focal_gamma=clip.FOCAL_SCALED_LOSS,
            keep_boxes=clip.NO_BOX_DELTA or clip.CROP_REGION_TYPE == "GT",
            multiply_objectness=clip.MULTIPLY_RPN_SCORE,
            objectness_sigmoid=clip.RPN_SCORE_SIGMOID,
            report_class_score=clip.VIS,
            detections=DetectionOptions.from_config(cfg),
        )


class ClipPredictor(FastRCNNOutputLayers):
    """Cosine similarity of region embeddings with class embeddings, and a box regressor.

    Keys: ``cls_score.weight`` [C, D] (frozen), ``cls_bg_score.weight`` [1, D] (zeros, frozen unless
    learned), ``test_cls_score.weight`` (frozen, if other classes are tested), ``bbox_pred.*``.

    Args:
        dim: D.
        num_classes: C of training.
        box2box_transform: of the regressor.
        trained: vocabulary of training; None = the checkpoint brings the embeddings.
        tested: other classes at test; None = the same.
        class_agnostic: one box per region, not one per class.
        options: how to score.
        layers: further arguments of detectron2's FastRCNNOutputLayers (box losses).
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_classes: int,
        box2box_transform: Box2BoxTransform,
        trained: Vocabulary | None = None,
        tested: Vocabulary | None = None,
        class_agnostic: bool = True,
        options: ClipPredictorOptions | None = None,
        **layers: Any,
    ) -> None:
        super().__init__(
            input_shape=ShapeSpec(channels=dim),
            box2box_transform=box2box_transform,
            num_classes=num_classes,
            cls_agnostic_bbox_reg=class_agnostic,
            **layers,
        )
        self.options = options or ClipPredictorOptions()
        self.trained, self.tested = trained, tested
        self.cls_score = ClassEmbeddings(embeddings_of(trained), num_classes=num_classes, dim=dim)
        self.cls_bg_score = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.cls_bg_score.weight)
        self.cls_bg_score.requires_grad_(self.options.learned_background)
        self.test_cls_score: ClassEmbeddings | None = None
        if tested is not None:
            emb_CD = embeddings_of(tested)
            self.test_cls_score = ClassEmbeddings(emb_CD, num_classes=len(tested), dim=dim)
        self.classification_loss = RegionClassificationLoss(
            gamma=self.options.focal_gamma, background_weight=self.options.background_weight
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        classes = ConfiguredClasses.from_config(cfg)
        head = cfg.MODEL.ROI_BOX_HEAD
        trained = classes.trained
        return {
            "dim": dim,
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES if trained is None else len(trained),
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "trained": trained,
            "tested": classes.tested,
            "class_agnostic": head.CLS_AGNOSTIC_BBOX_REG,
            "options": ClipPredictorOptions.from_config(cfg),
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
        }

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The classes that are detected at test, if they are known."""
        return self.tested if self.tested is not None else self.trained

    def forward(self, x_RD: Tensor, classifier_CD: Tensor | None = None) -> Predictions:
        """Logits ``[R, K]`` and box deltas.

        Args:
            x_RD: un-normalised region embeddings.
            classifier_CD: class embeddings for this call instead of the model's own.
        """
        if classifier_CD is None:
            own = self.cls_score
            if self.test_cls_score is not None and not self.training:
                own = self.test_cls_score
            classifier_CD = own()
        temperature = self.options.temperature
        logits_RC = cosine_logits(x_RD, classifier_CD, temperature)
        with torch.autocast(x_RD.device.type, enabled=False):
            unit_RD = unit_rows(x_RD)
            background_R1 = unit_RD @ self.cls_bg_score.weight.to(unit_RD.dtype).t() / temperature
        return torch.cat([logits_RC, background_R1], dim=1), self.bbox_pred(x_RD)

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``.

        Args:
            predictions: from :meth:`forward`.
            proposals: with ``proposal_boxes``, ``gt_classes`` and, where there are objects,
                ``gt_boxes``.
        """
        logits_RK, deltas = predictions
        labels_R = torch.cat([p.gt_classes for p in proposals])
        boxes_R4 = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # images without objects have background regions only: any box will do
        targets_R4 = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        losses = {
            "loss_cls": self.classification_loss(logits_RK, labels_R),
            "loss_box_reg": self.box_reg_loss(boxes_R4, targets_R4, deltas, labels_R),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def inference(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections per image, and the region each comes from.

        Args:
            predictions: from :meth:`forward`.
            proposals: with ``proposal_boxes``, and ``objectness_logits`` for score fusion.
        """
        counts = [len(p) for p in proposals]
        probs = predictions[0].softmax(dim=1).split(counts)
        boxes = self._boxes(predictions, proposals)
        results, rows = [], []
        for boxes_RX, probs_RK, image in zip(boxes, probs, proposals, strict=True):
            found, rows_n = self._detect(boxes_RX, probs_RK, image)
            results.append(found)
            rows.append(rows_n)
        return results, rows

    def prepare(self, emb_CD: Tensor) -> Tensor:
        """Class embeddings of unit length, for ``classifier_CD``."""
        return unit_rows(emb_CD)

    def _boxes(self, predictions: Predictions, proposals: list[Instances]) -> Sequence[Tensor]:
        if self.options.keep_boxes:
            return [p.proposal_boxes.tensor for p in proposals]
        boxes: Sequence[Tensor] = self.predict_boxes(predictions, proposals)
        return boxes

    def _detect(
        self, boxes_RX: Tensor, probs_RK: Tensor, image: Instances
    ) -> tuple[Instances, Tensor]:
        options = self.options
        scores_RK = probs_RK
        if options.multiply_objectness:
            scores_RK = fuse_objectness(
                probs_RK, image.objectness_logits, sigmoid=options.objectness_sigmoid
            )
        found, rows_n = detect(boxes_RX, scores_RK, image.image_size, options.detections)
        # soft-NMS lowers scores, so there the class score is not what ranks (published behaviour)
        if options.report_class_score and options.detections.soft is None:
            found.scores = probs_RK[rows_n, found.pred_classes]
        return found, rows_n
