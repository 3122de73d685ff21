"""Predictors from a configuration: which classes, which frequencies, which losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from detic_ext.modeling.class_list import RANDOM, class_frequencies, training_vocabulary
from detic_ext.modeling.predictor import DeticPredictor
from detic_ext.modeling.predictor_options import PredictorOptions
from ext_common.errors import ConfigError
from ext_common.modeling.zero_shot_classifier import (
    ZeroShotClassifier,
    prepare_classifier,
    share_classifier_weights,
)
from ext_common.vocabulary import Vocabulary


def build_predictors(
    cfg: CfgNode, width: int, reg_weights: Sequence[tuple[float, ...]]
) -> tuple[list[DeticPredictor], Vocabulary | None]:
    """One predictor per stage, which share their class columns.

    Args:
        cfg: the whole configuration.
        width: of the region features.
        reg_weights: box regression weights of each stage.

    Returns:
        the predictors, and the vocabulary that they were built from.
    """
    head = cfg.MODEL.ROI_BOX_HEAD
    vocabulary = training_vocabulary(cfg)
    num_classes = len(vocabulary) if vocabulary is not None else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    options = PredictorOptions.from_config(cfg)
    frequencies = None
    if options.needs_frequencies:
        frequencies = class_frequencies(cfg, num_classes)
        if frequencies is None:
            frequencies = torch.zeros(num_classes)  # the checkpoint may fill them
    classifiers: list[ZeroShotClassifier] = []
    if head.USE_ZEROSHOT_CLS:
        columns_DK = _class_columns(head, vocabulary, num_classes)
        keep: Literal["keep", "adopt"] = "keep" if vocabulary is not None else "adopt"
        classifiers = [
            ZeroShotClassifier(
                input_dim=width,
                weight_dim=head.ZEROSHOT_WEIGHT_DIM,
                weight_DK=columns_DK,
                num_classes=num_classes,
                normalize=head.NORM_WEIGHT,
                temperature=head.NORM_TEMP,
                bias=head.USE_BIAS,
                on_class_mismatch=keep,
            )
            for _ in reg_weights
        ]
        if columns_DK is not None:
            share_classifier_weights(classifiers)
    predictors = [
        DeticPredictor(
            input_dim=width,
            num_classes=num_classes,
            box2box_transform=Box2BoxTransform(weights=weights),
            classifier=classifiers[stage] if classifiers else None,
            freq_weight_C=frequencies,
            options=options,
        )
        for stage, weights in enumerate(reg_weights)
    ]
    return predictors, vocabulary


def _class_columns(head: CfgNode, vocabulary: Vocabulary | None, num_classes: int) -> Tensor | None:
    """Classifier columns [D, C+1]; zeros where the checkpoint has them, None for trained ones."""
    if vocabulary is not None and vocabulary.embeddings_CD is not None:
        width = vocabulary.embeddings_CD.shape[1]
        if width != head.ZEROSHOT_WEIGHT_DIM:
            raise ConfigError(
                f"the class embeddings are {width} wide, "
                f"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM is {head.ZEROSHOT_WEIGHT_DIM}",
                fix="set ZEROSHOT_WEIGHT_DIM to the width of the text encoder",
            )
        return prepare_classifier(vocabulary.embeddings_CD, normalize=head.NORM_WEIGHT)
    if head.ZEROSHOT_WEIGHT_PATH == RANDOM:
        return None
    return torch.zeros(head.ZEROSHOT_WEIGHT_DIM, num_classes + 1)
