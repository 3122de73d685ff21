"""The long tail's second stage: only the box classifiers are trained, with balanced classes.

Everything else is frozen (weights, statistics, dropout), so that no graph reaches below the last
linear layer of every head (spec 5). Shape suffixes: R regions, K classes and background, C classes.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ext_common.data.label_table import LabelTable
from ext_common.data.records import load_records, object_classes
from ext_common.errors import ConfigError
from ext_common.registries import MODEL_SETUP_REGISTRY, TRAIN_HOOK_REGISTRY
from frozen_backbone_ext.losses.class_balanced import (
    ClassBalancedSigmoid,
    ClassBalancedSoftmax,
    class_balanced_weights,
)
from frozen_backbone_ext.modeling.subclassing import extend
from frozen_backbone_ext.second_stage_cache import cache_regions

logger = logging.getLogger(__name__)

_KEY = "MODEL.CLASSIFIER_STAGE2"
COUNTS = ("instances", "images")


class KeepsStatistics(nn.Module):
    """Mixin of a model that gives the same features in training as in evaluation mode."""

    def train(self, mode: bool = True) -> KeepsStatistics:
        """Heads follow ``mode``, since they compute losses in training only.

        Norms and dropouts do not, nor does the backbone with its neck (drop-connect).
        """
        super().train(mode)
        for name, module in self.named_modules():
            if isinstance(module, _BatchNorm | _DropoutNd) or name.split(".")[-1] == "backbone":
                module.eval()
        return self


class BalancedPredictor(nn.Module):
    """Mixin of detectron2's box predictor with a class-balanced class loss."""

    balanced_loss: nn.Module

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Any:
        """detectron2's losses, ``loss_cls`` replaced."""
        own: Any = self
        parent: Any = super()
        losses = parent.losses(predictions, proposals)
        if proposals:
            logits_RK = predictions[0]
            labels_R = torch.cat([one.gt_classes for one in proposals])
            if getattr(own, "use_sigmoid_ce", False):
                logits_RK = logits_RK[:, :-1]
            weight = own.loss_weight.get("loss_cls", 1.0)
            losses["loss_cls"] = own.balanced_loss(logits_RK, labels_R) * weight
        return losses


def box_predictors(model: nn.Module) -> list[FastRCNNOutputLayers]:
    """Box predictors of a detector, in the order of the cascade.

    Raises:
        ConfigError: none of detectron2's kind.
    """
    found = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    if not found or not all(isinstance(m.cls_score, nn.Linear) for m in found):
        raise ConfigError(
            f"{type(model).__name__} has no linear box classifier",
            where=_KEY,
            fix="use it with detectron2's StandardROIHeads or a cascade",
        )
    return found


@MODEL_SETUP_REGISTRY.register()
def freeze_all_but_classifiers(cfg: CfgNode, model: nn.Module) -> None:
    """With ``MODEL.CLASSIFIER_STAGE2.ENABLED``, leave only ``cls_score`` trainable."""
    if not cfg.MODEL.CLASSIFIER_STAGE2.ENABLED:
        return
    model.requires_grad_(False)
    for predictor in box_predictors(model):
        predictor.cls_score.requires_grad_(True)
    extend(model, KeepsStatistics).train(model.training)
    if cfg.MODEL.CLASSIFIER_STAGE2.CACHE_FOLDER:
        cache_regions(model, cfg)


def class_counts(labels: LabelTable, num_classes: int, kind: str) -> Tensor:
    """Examples per class, float64 [C].

    Args:
        labels: classes of every image's objects.
        num_classes: C.
        kind: ``instances`` or ``images`` that show the class.

    Raises:
        ConfigError: another kind, or no examples at all.
    """
    if kind not in COUNTS:
        raise ConfigError(
            f"unknown count {kind!r}", where=f"{_KEY}.COUNT", fix=f"one of {', '.join(COUNTS)}"
        )
    classes_L = labels.values_L
    if kind == "images":
        pairs = np.unique(labels.owners_L * num_classes + labels.values_L)
        classes_L = pairs % num_classes
    counts_C = np.bincount(classes_L, minlength=num_classes)[:num_classes]
    if not counts_C.any():
        raise ConfigError(
            "the training data have no objects to take class frequencies from",
            where="DATASETS.TRAIN",
            fix="name datasets with annotations",
        )
    return torch.from_numpy(counts_C.astype(np.float64))


@TRAIN_HOOK_REGISTRY.register()
def build_second_stage_hooks(cfg: CfgNode, trainer: Any) -> list[HookBase]:
    """No hook: gives the predictors their loss, whose weights come from the training data."""
    stage2 = cfg.MODEL.CLASSIFIER_STAGE2
    if not stage2.ENABLED:
        return []
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    counts_C = class_counts(object_classes(load_records(cfg)), num_classes, stage2.COUNT)
    balance_predictors(trainer.model, counts_C, stage2.BETA, stage2.REDUCTION)
    return []


def balance_predictors(model: nn.Module, counts_C: Tensor, beta: float, reduction: str) -> None:
    """Give every box predictor of a model the class-balanced loss.

    Args:
        model: changed in place.
        counts_C: examples per class.
        beta, reduction: see :mod:`frozen_backbone_ext.losses.class_balanced`.
    """
    logger.info("%d of %d classes have no example", int((counts_C == 0).sum()), len(counts_C))
    weights_C = class_balanced_weights(counts_C, beta)
    device = next(model.parameters()).device
    for predictor in box_predictors(model):
        sigmoid = getattr(predictor, "use_sigmoid_ce", False)
        loss = ClassBalancedSigmoid if sigmoid else ClassBalancedSoftmax
        predictor.add_module("balanced_loss", loss(weights_C, reduction).to(device))
        extend(predictor, BalancedPredictor)
