"""Predictors from a configuration: which classes, which frequencies, which losses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from detic_ext.losses.class_frequency import frequency_weight, image_counts, read_image_counts
from detic_ext.modeling.predictor import DeticPredictor, PredictorOptions
from ext_common.errors import ConfigError, DatasetError, WeightsError
from ext_common.modeling.zero_shot_classifier import (
    ZeroShotClassifier,
    prepare_classifier,
    share_classifier_weights,
)
from ext_common.text_encoder import load_vocabulary
from ext_common.vocabulary import Vocabulary

RANDOM = "rand"


def training_vocabulary(cfg: CfgNode) -> Vocabulary | None:
    """The classes of the model: ``MODEL.VOCABULARY``, else the embedding file of Detic.

    Returns:
        None where the classifier is random (``rand``), ordinary, or to be read from the checkpoint.

    Raises:
        WeightsError: the embedding file is missing and there is no checkpoint to take its place.
    """
    chosen = load_vocabulary(cfg)
    head = cfg.MODEL.ROI_BOX_HEAD
    if chosen is not None or not head.USE_ZEROSHOT_CLS or head.ZEROSHOT_WEIGHT_PATH == RANDOM:
        return chosen
    path = Path(head.ZEROSHOT_WEIGHT_PATH)
    if path.is_file():
        names = _names_from_datasets(cfg)
        return Vocabulary.from_file(path, names=names, generate_names=names is None)
    if cfg.MODEL.WEIGHTS:
        logging.getLogger(__name__).warning(
            "%s is missing: the class columns are taken from %s", path, cfg.MODEL.WEIGHTS
        )
        return None
    raise WeightsError(
        "no such embedding file",
        where=f"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH {path}",
        fix="set MODEL.VOCABULARY to class names, or make the file as docs/vocabulary.md says",
    )


def _names_from_datasets(cfg: CfgNode) -> tuple[str, ...] | None:
    """Class names of the first dataset that has as many as the model."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return tuple(names)
    return None


def class_frequencies(cfg: CfgNode, num_classes: int) -> Tensor | None:
    """Sampling weights [C] from the frequency file or, without it, from the training data.

    Raises:
        ConfigError: the losses need frequencies and nothing has them.
    """
    head = cfg.MODEL.ROI_BOX_HEAD
    if not (head.USE_FED_LOSS or head.IGNORE_ZERO_CATS):
        return None
    power = head.FED_LOSS_FREQ_WEIGHT
    counts: Sequence[float] | None = None
    if Path(head.CAT_FREQ_PATH).is_file():
        counts = read_image_counts(head.CAT_FREQ_PATH)
        if len(counts) > num_classes:
            counts = None  # the default file of another vocabulary
    if counts is None:
        counts = _counts_of_training_data(cfg)
    if counts is None:
        if cfg.MODEL.WEIGHTS:
            return torch.zeros(num_classes)  # a buffer that the checkpoint fills
        raise ConfigError(
            f"{head.CAT_FREQ_PATH} is missing or has other classes, and the training data say "
            "nothing of class frequencies",
            where="MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH",
            fix="give the file, or turn off USE_FED_LOSS and IGNORE_ZERO_CATS",
        )
    return frequency_weight(counts, power=power, num_classes=num_classes)


def _counts_of_training_data(cfg: CfgNode) -> Sequence[float] | None:
    """Images per class of the first training dataset, which is the one with boxes."""
    for name in cfg.DATASETS.TRAIN[:1]:
        try:
            records = getattr(MetadataCatalog.get(name), "class_image_count", None)
        except DatasetError:
            # inference on a machine without the training data: the checkpoint has the buffer
            if cfg.MODEL.WEIGHTS:
                return None
            raise
        if records:
            return image_counts(records, where=name)
    return None


def build_predictors(
    cfg: CfgNode, input_shape: ShapeSpec, reg_weights: Sequence[tuple[float, ...]]
) -> tuple[list[DeticPredictor], Vocabulary | None]:
    """One predictor per stage, which share their class columns.

    Args:
        cfg: the whole configuration.
        input_shape: of the box head's output.
        reg_weights: box regression weights of each stage.

    Returns:
        the predictors, and the vocabulary that they were built from.
    """
    head = cfg.MODEL.ROI_BOX_HEAD
    width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
    vocabulary = training_vocabulary(cfg)
    num_classes = len(vocabulary) if vocabulary is not None else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    options = PredictorOptions.from_config(cfg)
    frequencies = class_frequencies(cfg, num_classes)
    classifiers = (
        [_build_classifier(head, width, vocabulary, num_classes) for _ in reg_weights]
        if head.USE_ZEROSHOT_CLS
        else []
    )
    if classifiers and not isinstance(classifiers[0].zs_weight, torch.nn.Parameter):
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


def _build_classifier(
    head: CfgNode, width: int, vocabulary: Vocabulary | None, num_classes: int
) -> ZeroShotClassifier:
    weight_DK: Tensor | None = None
    if vocabulary is not None and vocabulary.embeddings_CD is not None:
        weight_DK = prepare_classifier(vocabulary.embeddings_CD, normalize=head.NORM_WEIGHT)
        if weight_DK.shape[0] != head.ZEROSHOT_WEIGHT_DIM:
            raise ConfigError(
                f"the class embeddings are {weight_DK.shape[0]} wide, "
                f"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM is {head.ZEROSHOT_WEIGHT_DIM}",
                fix="set ZEROSHOT_WEIGHT_DIM to the width of the text encoder",
            )
    elif head.ZEROSHOT_WEIGHT_PATH != RANDOM:
        weight_DK = torch.zeros(head.ZEROSHOT_WEIGHT_DIM, num_classes + 1)
    return ZeroShotClassifier(
        input_dim=width,
        weight_dim=head.ZEROSHOT_WEIGHT_DIM,
        weight_DK=weight_DK,
        num_classes=num_classes,
        normalize=head.NORM_WEIGHT,
        temperature=head.NORM_TEMP,
        bias=head.USE_BIAS,
        on_class_mismatch="keep" if vocabulary is not None else "adopt",
    )
