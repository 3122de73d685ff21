"""The classes that a checkpoint records, for machines without the dataset that named them."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode

from ext_common.errors import DatasetError, VocabularyError
from ext_common.stored_weights import read_weights
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_files import NameSource, find_source

logger = logging.getLogger(__name__)


def recorded_vocabulary(cfg: CfgNode, problem: VocabularyError | DatasetError) -> Vocabulary:
    """The vocabulary in ``MODEL.WEIGHTS``, where ``MODEL.VOCABULARY`` is a dataset that is missing.

    Args:
        cfg: complete configuration.
        problem: why ``MODEL.VOCABULARY`` cannot be read.

    Raises:
        VocabularyError, DatasetError: ``problem``, where a checkpoint cannot take its place.
        WeightsError: weights that cannot be read.
    """
    if find_source(cfg.MODEL.VOCABULARY)[0] is not NameSource.DATASET or not cfg.MODEL.WEIGHTS:
        raise problem
    recorded = read_weights(cfg.MODEL.WEIGHTS).vocabulary
    if recorded is None:
        raise problem
    logger.warning(
        "MODEL.VOCABULARY %s cannot be read (%s): the classes are those recorded in %s",
        cfg.MODEL.VOCABULARY,
        problem,
        cfg.MODEL.WEIGHTS,
    )
    return Vocabulary.from_state_dict(recorded)
