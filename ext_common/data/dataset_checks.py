"""Checks of the configured datasets that run before the first iteration."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ext_common.data.class_names import check_same_order
from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_registry import register_from_config
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.errors import DatasetError, VocabularyError
from ext_common.evaluation.ground_truth import resolve_class_groups
from ext_common.evaluation.vocabularies import read_test_vocabulary, resets_classes
from ext_common.recorded_vocabulary import recorded_vocabulary
from ext_common.registries import CONFIG_CHECK_REGISTRY, EVALUATOR_REGISTRY
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_files import DATASET_PREFIX
from ext_common.vocabulary_order import first_misplaced, known_names

_VOCABULARY = "MODEL.VOCABULARY"
_DETIC_FILE = "ZEROSHOT_WEIGHT_PATH"
_TRAINED_FILE, _TESTED_FILE = "TEXT_EMB_PATH", "OPENSET_TEST_TEXT_EMB_PATH"


@dataclass(frozen=True)
class _ModelClasses:
    """What a configuration says about the classes of its model.

    Attributes:
        count: their number.
        key: the key that gives the number.
        names: what the rows stand for; None = not known.
        source: the key that gives the names, and the file.
    """

    count: int
    key: str
    names: tuple[str, ...] | None = None
    source: str = ""


@CONFIG_CHECK_REGISTRY.register()
def check_datasets(cfg: CfgNode, training: bool) -> None:
    """Datasets are known, their files are there, and their classes fit the model.

    Registers the files of ``DATASETS.REGISTRY`` first. Without training nothing else is checked: a
    model can be used on a machine that has no dataset, and evaluation checks the one it needs.

    Raises:
        ConfigError, DatasetError: what is wrong, with the fix.
    """
    register_from_config(cfg)
    if not training:
        return
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            require_dataset(name, where=f"DATASETS.{key}")
            check_files(name)
    _check_training_classes(cfg)
    for name in cfg.DATASETS.TEST:
        _check_test_classes(cfg, name)
        check_evaluator(name)


def check_evaluator(name: str) -> None:
    """There is an evaluator for the dataset's ``evaluator_type``.

    Raises:
        DatasetError: no type, or one that nothing is registered for; the known ones are listed.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type")
    known = sorted(registered for registered, _ in EVALUATOR_REGISTRY)
    if kind in known:
        return
    what = f"evaluator_type {kind!r} has no evaluator" if kind else "no evaluator_type is set"
    near = difflib.get_close_matches(str(kind), known, n=1)
    raise DatasetError(
        f"{what}, and the dataset is in DATASETS.TEST",
        where=f"dataset {name!r}",
        fix=(f"did you mean {near[0]}? " if near else "") + f"known types: {', '.join(known)}",
    )


def check_test_dataset(cfg: CfgNode, name: str) -> None:
    """The same for one dataset that is about to be evaluated.

    Raises:
        DatasetError: unknown, missing files, classes that do not fit the model, or class groups
            that do not fit the classes.
    """
    require_dataset(name, where="DATASETS.TEST")
    check_files(name)
    _check_test_classes(cfg, name)


def check_files(name: str) -> None:
    """The annotation file and the image folder of a registered dataset exist.

    Raises:
        DatasetError: names what is missing.
    """
    registered = DatasetCatalog[name]
    if isinstance(registered, DatasetSpec):
        missing = registered.missing_files()
    else:
        # detectron2's own datasets; others may have nothing to do with files
        paths = [MetadataCatalog.get(name).get(key) for key in ("json_file", "image_root")]
        missing = [path for path in paths if isinstance(path, str) and not _exists(path)]
    if missing:
        raise DatasetError(
            f"missing: {', '.join(missing)}",
            where=f"dataset {name!r}",
            fix="datasets/README.md shows where each file belongs; "
            "DETECTRON2_DATASETS names the root of the built-in datasets",
        )


def _exists(path: str) -> bool:
    from detectron2.utils.file_io import PathManager

    return bool(PathManager.exists(path))


def _check_training_classes(cfg: CfgNode) -> None:
    """Every training dataset has the model's classes.

    A dataset may have fewer where another has them all and agrees on those: LVIS with the 22,047
    classes that begin with LVIS' own.
    """
    model = _model_classes(cfg)
    if model is None:
        return
    expected = model.count
    classes = {name: _classes_of(name) for name in cfg.DATASETS.TRAIN}
    known = {name: found for name, found in classes.items() if found}
    complete = next((name for name, found in known.items() if len(found) == expected), None)
    for name, found in known.items():
        if len(found) != expected and (complete is None or len(found) > expected):
            _refuse_count(name, len(found), model)
        if complete is not None:
            check_same_order(name, found, complete, known[complete])
        _check_model_order(name, found, model)


def _check_test_classes(cfg: CfgNode, name: str) -> None:
    found = _classes_of(name)
    resolve_class_groups(MetadataCatalog.get(name).get("class_groups") or {}, found, name)
    if resets_classes(cfg):
        read_test_vocabulary(cfg, name)
        return
    model = _tested_classes(cfg)
    if model is None or not found:
        return
    expected = model.count
    if len(found) != expected:
        _refuse_count(name, len(found), model)
    _check_model_order(name, found, model)
    for trained in cfg.DATASETS.TRAIN:
        # the training set need not be here when a model is evaluated
        if trained in DatasetCatalog and not _missing(trained):
            names = _classes_of(trained)
            if len(names) == expected:
                check_same_order(name, found, trained, names)
                return


def _check_model_order(name: str, found: Sequence[str], model: _ModelClasses) -> None:
    """The names that belong to the model's rows, where they are known, are the dataset's."""
    # lists of other lengths are refused elsewhere, or one begins with the other
    if model.names is None or len(model.names) != len(found):
        return
    row = first_misplaced(found, model.names, renamed=model.source == _VOCABULARY)
    if row is None:
        return
    fix = (
        f"name the classes in the dataset's order, or set {_VOCABULARY} {DATASET_PREFIX}{name}"
        if model.source == _VOCABULARY
        else "make the file from the dataset's own categories (tools/prepare_data.py "
        "concept-features --ann); rows without names (.npy) are taken in the dataset's order"
    )
    raise DatasetError(
        f"class {row} is {found[row]!r} here and {model.names[row]!r} in {model.source}",
        where=f"dataset {name!r}",
        fix=fix,
    )


def _model_classes(cfg: CfgNode) -> _ModelClasses | None:
    """The classes of the model in training; None for models without classes."""
    if cfg.MODEL.get("VOCABULARY"):
        try:
            vocabulary = Vocabulary.parse(cfg.MODEL.VOCABULARY, generate_names=True)
        except (VocabularyError, DatasetError) as error:
            # the dataset that named the classes need not be here when a model is evaluated
            vocabulary = recorded_vocabulary(cfg, error)
        names = known_names(vocabulary.names)
        return _ModelClasses(len(vocabulary), _VOCABULARY, names, _VOCABULARY)
    if cfg.MODEL.META_ARCHITECTURE == "CenterNetDetector" and not cfg.MODEL.CENTERNET.ONLY_PROPOSAL:
        return _ModelClasses(int(cfg.MODEL.CENTERNET.NUM_CLASSES), "MODEL.CENTERNET.NUM_CLASSES")
    if cfg.MODEL.META_ARCHITECTURE == "DeformableDetr":
        return _ModelClasses(int(cfg.MODEL.DETR.NUM_CLASSES), "MODEL.DETR.NUM_CLASSES")
    if "RCNN" in cfg.MODEL.META_ARCHITECTURE:
        count, key = int(cfg.MODEL.ROI_HEADS.NUM_CLASSES), "MODEL.ROI_HEADS.NUM_CLASSES"
        source, path = f"MODEL.CLIP.{_TRAINED_FILE}", _embedding_file(cfg, _TRAINED_FILE)
        head = cfg.MODEL.ROI_BOX_HEAD
        if not path and head.get("USE_ZEROSHOT_CLS"):
            source, path = f"MODEL.ROI_BOX_HEAD.{_DETIC_FILE}", str(head.get(_DETIC_FILE) or "")
        # a file that is missing is the model's to refuse
        if not path or not Path(path).expanduser().is_file():
            return _ModelClasses(count, key)
        names = known_names(Vocabulary.from_file(path, generate_names=True).names)
        return _ModelClasses(count, key, names, f"{source} {path}")
    return None


def _tested_classes(cfg: CfgNode) -> _ModelClasses | None:
    """As :func:`_model_classes`; RegionCLIP's detectors may test other classes than they train."""
    path = _embedding_file(cfg, _TESTED_FILE)
    if not path:
        return _model_classes(cfg)
    classes, key = Vocabulary.from_file(path, generate_names=True), f"MODEL.CLIP.{_TESTED_FILE}"
    return _ModelClasses(len(classes), key, known_names(classes.names), f"{key} {path}")


def _embedding_file(cfg: CfgNode, key: str) -> str:
    """A file of class embeddings that RegionCLIP's detector classifies with; empty for none."""
    if cfg.MODEL.META_ARCHITECTURE != "CLIPFastRCNN":
        return ""
    return str((cfg.MODEL.get("CLIP") or {}).get(key) or "")


def _classes_of(name: str) -> Sequence[str]:
    return MetadataCatalog.get(name).get("thing_classes") or ()


def _missing(name: str) -> bool:
    try:
        check_files(name)
    except DatasetError:
        return True
    return False


def _refuse_count(name: str, found: int, model: _ModelClasses) -> None:
    key = model.key
    fix = (
        f"set {key} {found}, or use another dataset"
        if key.endswith("NUM_CLASSES")
        else f"name the {found} classes in {key}, or use dataset:{name}"
    )
    raise DatasetError(
        f"{found} classes, but {key} stands for {model.count}",
        where=f"dataset {name!r}",
        fix=fix,
    )
