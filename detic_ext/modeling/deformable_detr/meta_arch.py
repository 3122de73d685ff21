"""Meta-architecture ``DeformableDetr``: boxes and image labels (Detic specification section 11).

Shapes: C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from detic_ext.losses.detr_criterion import CriterionOptions, DetrCriterion
from detic_ext.losses.detr_data import DetrPredictions
from detic_ext.losses.detr_image_labels import largest_query_loss
from detic_ext.losses.detr_matching import MatchWeights
from detic_ext.modeling.class_list import class_frequencies
from detic_ext.modeling.deformable_detr.inference import top_detections
from detic_ext.modeling.deformable_detr.network import DetrNetwork
from detic_ext.modeling.deformable_detr.options import TransformerOptions
from detic_ext.modeling.deformable_detr.targets import build_targets, no_targets
from detic_ext.modeling.supervision import Supervision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisionOptions:
    """What the model learns from.

    Args:
        criterion: losses on boxes.
        deep: supervise every decoder layer instead of the last alone.
        with_image_labels: batches say in ``ann_type`` what they are annotated with.
        weak_weight: factor of the image-label loss.
    """

    criterion: CriterionOptions
    deep: bool = True
    with_image_labels: bool = False
    weak_weight: float = 0.1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SupervisionOptions:
        """Read ``MODEL.DETR``; the federated loss has its size in ``MODEL.ROI_BOX_HEAD``."""
        node = cfg.MODEL.DETR
        weights = MatchWeights(
            classes=node.CLS_WEIGHT,
            l1=node.L1_WEIGHT,
            giou=node.GIOU_WEIGHT,
            alpha=node.FOCAL_ALPHA,
        )
        size = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT if node.USE_FED_LOSS else None
        return cls(
            criterion=CriterionOptions(weights=weights, federated_size=size),
            deep=node.DEEP_SUPERVISION,
            with_image_labels=cfg.WITH_IMAGE_LABELS,
            weak_weight=node.WEAK_WEIGHT,
        )


@META_ARCH_REGISTRY.register()
class DeformableDetr(nn.Module):
    """Detector with trained classes, without anchors and without suppression of doubles.

    Args:
        backbone: gives the feature maps.
        num_classes: C.
        transformer: size and kind of the network.
        supervision: what it learns from.
        freq_weight_C: sampling weights of the classes for the federated loss; None = all alike.
        pixel_mean: per channel of the input.
        pixel_std: likewise.
        detections_per_image: at test.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        transformer: TransformerOptions,
        supervision: SupervisionOptions,
        freq_weight_C: Tensor | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        detections_per_image: int = 300,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.supervision = supervision
        self.detections_per_image = detections_per_image
        self.detr = DetrNetwork(backbone=backbone, num_classes=num_classes, options=transformer)
        self.criterion = DetrCriterion(
            num_classes=num_classes, options=supervision.criterion, freq_weight_C=freq_weight_C
        )
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            per_channel = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Translate config keys to constructor arguments."""
        num_classes = cfg.MODEL.DETR.NUM_CLASSES
        frequencies = None
        if cfg.MODEL.DETR.USE_FED_LOSS:
            frequencies = class_frequencies(cfg, num_classes)
            if frequencies is None:
                # the checkpoint may fill them, and only training needs them
                logger.warning(
                    "no class frequencies: the federated loss draws no classes unless they are in "
                    "MODEL.WEIGHTS (MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH names a file)"
                )
                frequencies = torch.zeros(num_classes)
        return {
            "backbone": build_backbone(cfg),
            "num_classes": num_classes,
            "transformer": TransformerOptions.from_config(cfg),
            "supervision": SupervisionOptions.from_config(cfg),
            "freq_weight_C": frequencies,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: detectron2's dicts; in training also ``ann_type`` and
                ``pos_category_ids`` where the model was built with image labels.

        Returns:
            Training: loss name -> scalar; every kind of batch gives the same names.
            Inference: one ``{"instances": Instances}`` per image, at the size that ``height`` and
            ``width`` of its input ask for.
        """
        images = self._preprocess(batched_inputs)
        predictions: DetrPredictions = self.detr(images.tensor, images.image_sizes)
        if self.training:
            return self._losses(predictions, batched_inputs)
        found = top_detections(
            predictions.logits_KBQC[-1],
            predictions.boxes_KBQ4[-1],
            images.image_sizes,
            self.detections_per_image,
        )
        results = []
        for instances, item in zip(found, batched_inputs, strict=True):
            height, width = (
                item.get(key, size)
                for key, size in zip(("height", "width"), instances.image_size, strict=True)
            )
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        normalised = [
            (item["image"].to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
            for item in batched_inputs
        ]
        return ImageList.from_tensors(normalised, self.detr.size_divisibility)

    def _losses(
        self, predictions: DetrPredictions, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        options = self.supervision
        kind = (
            Supervision.from_batch(batched_inputs) if options.with_image_labels else Supervision()
        )
        if not options.deep:
            predictions = predictions.last_layer()
        if kind.ann_type == "box":
            targets = build_targets(batched_inputs, self.num_classes, self.device)
        else:
            targets = no_targets(len(batched_inputs), self.device)
        losses: dict[str, Tensor] = self.criterion(predictions, targets)
        if options.with_image_labels:
            labels = kind.labels if kind.has_labels else [()] * len(batched_inputs)
            loss = largest_query_loss(predictions.logits_KBQC, predictions.boxes_KBQ4, labels)
            losses["loss_image"] = loss * options.weak_weight
        return losses
