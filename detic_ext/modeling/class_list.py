"""The classes of a model and how often they occur, as a configuration says.

A machine that only detects has no training data: what they would have told comes from the
checkpoint then. Shapes: C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from detic_ext.losses.class_frequency import frequency_weight, image_counts, read_image_counts
from ext_common.errors import DatasetError, VocabularyError, WeightsError
from ext_common.recorded_vocabulary import recorded_vocabulary
from ext_common.text_encoder import load_vocabulary
from ext_common.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RANDOM = "rand"
"""ZEROSHOT_WEIGHT_PATH of a classifier whose columns are trained, or loaded later."""


def training_vocabulary(cfg: CfgNode) -> Vocabulary | None:
    """The classes of the model: ``MODEL.VOCABULARY``, else the embedding file of Detic.

    Where ``MODEL.VOCABULARY`` names a dataset that is not here, the classes are those that
    ``MODEL.WEIGHTS`` records.

    Returns:
        None where the classifier is random (``rand``), ordinary, or to be read from the checkpoint.

    Raises:
        WeightsError: the embedding file is missing and there is no checkpoint to take its place.
        VocabularyError: the dataset is not here, and no checkpoint records the classes.
    """
    try:
        chosen = load_vocabulary(cfg)
    except (VocabularyError, DatasetError) as error:
        chosen = recorded_vocabulary(cfg, error)
    head = cfg.MODEL.ROI_BOX_HEAD
    if chosen is not None or not head.USE_ZEROSHOT_CLS or head.ZEROSHOT_WEIGHT_PATH == RANDOM:
        return chosen
    path = Path(head.ZEROSHOT_WEIGHT_PATH)
    if path.is_file():
        return Vocabulary.from_file(
            path, generate_names=True, fallback_names=lambda _: _names_from_datasets(cfg)
        )
    if cfg.MODEL.WEIGHTS:
        logger.warning(
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
        try:
            names = MetadataCatalog.get(name).get("thing_classes")
        except DatasetError:  # not on this machine
            continue
        if names is not None and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return tuple(names)
    return None


def class_frequencies(cfg: CfgNode, num_classes: int) -> Tensor | None:
    """Sampling weights [C] from the frequency file or, without it, from the training data.

    Counts of more classes than the model has are of another vocabulary, and are not used.

    Returns:
        None where neither is here: they may be in the checkpoint, and only training needs them.
    """
    head = cfg.MODEL.ROI_BOX_HEAD
    counts: Sequence[float] | None = None
    if Path(head.CAT_FREQ_PATH).is_file():
        counts = _fitting(read_image_counts(head.CAT_FREQ_PATH), num_classes, head.CAT_FREQ_PATH)
    if counts is None:
        counts = _fitting(_counts_of_training_data(cfg), num_classes, "DATASETS.TRAIN")
    if counts is None:
        return None
    return frequency_weight(counts, power=head.FED_LOSS_FREQ_WEIGHT, num_classes=num_classes)


def _fitting(
    counts: Sequence[float] | None, num_classes: int, source: str
) -> Sequence[float] | None:
    if counts is not None and len(counts) > num_classes:
        logger.info(
            "class frequencies of %s are of another vocabulary (%d classes, the model has %d)",
            source,
            len(counts),
            num_classes,
        )
        return None
    return counts


def _counts_of_training_data(cfg: CfgNode) -> Sequence[float] | None:
    """Images per class of the first training dataset, which is the one with boxes."""
    for name in cfg.DATASETS.TRAIN[:1]:
        try:
            records = getattr(MetadataCatalog.get(name), "class_image_count", None)
        except DatasetError:  # not on this machine
            return None
        if records:
            return image_counts(records, where=name)
    return None
