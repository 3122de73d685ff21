"""A vocabulary for each test set (``MODEL.RESET_CLS_TESTS``, Detic specification section 2).

The model is not changed: the classes of a test set go along with every call, as a classifier that
``model.prepare_vocabulary`` has made. Legend: C classes of a test set, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from ext_common.data.class_names import check_same_order
from ext_common.data.dataset_names import require_dataset
from ext_common.errors import ConfigError
from ext_common.text_encoder import TextEncoder, embed_vocabulary, text_encoder_from_config
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_files import DATASET_PREFIX, NameSource, find_source, read_parts

_CLASSIFIERS = "MODEL.TEST_CLASSIFIERS"
_COUNTS = "MODEL.TEST_NUM_CLASSES"


class WithClassifier(nn.Module):
    """A model that is asked for other classes than its own in every call.

    Args:
        model: takes ``classifier=`` in inference; shared, not copied.
        classifier_DK: what its ``prepare_vocabulary`` gave, [D, C+1].
    """

    def __init__(self, model: nn.Module, classifier_DK: Tensor) -> None:
        super().__init__()
        self.model = model
        self.classifier_DK = classifier_DK
        self.training = model.training  # who switches the mode and back finds the model's own

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detections of ``model``."""
        return self.model(batched_inputs, classifier=self.classifier_DK)


def resets_classes(cfg: CfgNode) -> bool:
    """Whether test sets bring their own vocabularies; the key is Detic's."""
    return bool(cfg.MODEL.get("RESET_CLS_TESTS", False))


def with_test_vocabularies(cfg: CfgNode, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every test set, and what to run on it.

    With ``RESET_CLS_TESTS`` the vocabularies of all test sets are read and checked before the first
    pair is given; names without embeddings are embedded with ``MODEL.TEXT_ENCODER``.

    Args:
        cfg: complete configuration.
        model: without wrapper.

    Yields:
        Name in ``DATASETS.TEST``; ``model``, or a :class:`WithClassifier` around it.

    Raises:
        ConfigError: numbers that do not fit, or a model whose classes are fixed.
        DatasetError: an unknown test set, or classes in another order.
        VocabularyError, WeightsError: a vocabulary or text encoder that cannot be used.
    """
    names = list(cfg.DATASETS.TEST)
    if not resets_classes(cfg):
        yield from ((name, model) for name in names)
        return
    prepare = getattr(model, "prepare_vocabulary", None)
    if prepare is None:
        raise ConfigError(
            f"{type(model).__name__} has a fixed list of classes",
            where="MODEL.RESET_CLS_TESTS",
            fix="set it False, or use a model with a zero-shot classifier",
        )
    vocabularies = embedded(cfg, [read_test_vocabulary(cfg, name) for name in names])
    with torch.no_grad():
        tested = [WithClassifier(model, prepare(vocabulary)) for vocabulary in vocabularies]
    yield from zip(names, tested, strict=True)


def read_test_vocabulary(cfg: CfgNode, name: str) -> Vocabulary:
    """The vocabulary of one test set, with or without embeddings.

    It is the entry of ``MODEL.TEST_CLASSIFIERS`` at the place of ``name`` in ``DATASETS.TEST``; all
    that :meth:`Vocabulary.parse` takes will do. Without that list it is ``dataset:NAME``.

    Raises:
        ConfigError: lists of another length, or a number of classes that is not the test set's.
        DatasetError: an unknown test set, or named classes in another order.
        VocabularyError: a vocabulary that cannot be read.
    """
    require_dataset(name, where="DATASETS.TEST")
    spec = _entry(cfg, "TEST_CLASSIFIERS", name) or f"{DATASET_PREFIX}{name}"
    expected = _entry(cfg, "TEST_NUM_CLASSES", name)
    vocabulary, named = _read(str(spec))
    if expected is not None and len(vocabulary) != int(expected):
        raise ConfigError(
            f"{spec} has {len(vocabulary)} classes, {_COUNTS} says {expected}",
            where=f"{_CLASSIFIERS} for {name!r}",
            fix="correct the number, or name the file of this test set",
        )
    classes = MetadataCatalog.get(name).get("thing_classes") or ()
    if classes and len(classes) != len(vocabulary):
        raise ConfigError(
            f"{spec} has {len(vocabulary)} classes, the test set has {len(classes)}",
            where=f"{_CLASSIFIERS} for {name!r}",
            fix=f"give one entry per name in DATASETS.TEST, in that order; "
            f"{DATASET_PREFIX}{name} embeds the test set's own names",
        )
    if classes and named:
        check_same_order(name, classes, str(spec), vocabulary.names)
    return vocabulary


def embedded(cfg: CfgNode, vocabularies: list[Vocabulary]) -> list[Vocabulary]:
    """The same with embeddings; the text encoder is built only where one lacks them."""
    node = cfg.MODEL.TEXT_ENCODER
    encoder: TextEncoder | None = None
    complete = []
    for vocabulary in vocabularies:
        if vocabulary.embeddings_CD is None:
            encoder = encoder or text_encoder_from_config(cfg)
            vocabulary = embed_vocabulary(vocabulary, encoder, node.TEMPLATES, node.CACHE_DIR)
        complete.append(vocabulary)
    return complete


def _entry(cfg: CfgNode, key: str, name: str) -> Any:
    """What a list with one entry per test set says about ``name``; None where it is empty."""
    values, names = list(cfg.MODEL.get(key, ())), list(cfg.DATASETS.TEST)
    if not values:
        return None
    if len(values) != len(names):
        raise ConfigError(
            f"{len(values)} entries for {len(names)} test sets: {names}",
            where=f"MODEL.{key}",
            fix="give one entry per name in DATASETS.TEST, or none",
        )
    return values[names.index(name)]


def _read(spec: str) -> tuple[Vocabulary, bool]:
    """A vocabulary, and whether its names are known: files of rows alone have none."""
    source, value = find_source(spec)
    named = source is not NameSource.FILE or read_parts(Path(value)).names is not None
    return Vocabulary.parse(spec, generate_names=True), named
