"""Checks of the configured datasets that run before the first iteration."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

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
    expected, key = _model_classes(cfg)
    if expected is None:
        return
    classes = {name: _classes_of(name) for name in cfg.DATASETS.TRAIN}
    known = {name: found for name, found in classes.items() if found}
    complete = next((name for name, found in known.items() if len(found) == expected), None)
    for name, found in known.items():
        if len(found) != expected and (complete is None or len(found) > expected):
            _refuse_count(name, len(found), expected, key)
        if complete is not None:
            check_same_order(name, found, complete, known[complete])


def _check_test_classes(cfg: CfgNode, name: str) -> None:
    found = _classes_of(name)
    resolve_class_groups(MetadataCatalog.get(name).get("class_groups") or {}, found, name)
    if resets_classes(cfg):
        read_test_vocabulary(cfg, name)
        return
    expected, key = _tested_classes(cfg)
    if expected is None or not found:
        return
    if len(found) != expected:
        _refuse_count(name, len(found), expected, key)
    for trained in cfg.DATASETS.TRAIN:
        # the training set need not be here when a model is evaluated
        if trained in DatasetCatalog and not _missing(trained):
            names = _classes_of(trained)
            if len(names) == expected:
                check_same_order(name, found, trained, names)
                return


def _model_classes(cfg: CfgNode) -> tuple[int | None, str]:
    """Number of classes of the model and the key that says so; None for models without classes."""
    if cfg.MODEL.get("VOCABULARY"):
        try:
            vocabulary = Vocabulary.parse(cfg.MODEL.VOCABULARY, generate_names=True)
        except (VocabularyError, DatasetError) as error:
            # the dataset that named the classes need not be here when a model is evaluated
            vocabulary = recorded_vocabulary(cfg, error)
        return len(vocabulary), "MODEL.VOCABULARY"
    if cfg.MODEL.META_ARCHITECTURE == "CenterNetDetector" and not cfg.MODEL.CENTERNET.ONLY_PROPOSAL:
        return int(cfg.MODEL.CENTERNET.NUM_CLASSES), "MODEL.CENTERNET.NUM_CLASSES"
    if cfg.MODEL.META_ARCHITECTURE == "DeformableDetr":
        return int(cfg.MODEL.DETR.NUM_CLASSES), "MODEL.DETR.NUM_CLASSES"
    if "RCNN" in cfg.MODEL.META_ARCHITECTURE:
        return int(cfg.MODEL.ROI_HEADS.NUM_CLASSES), "MODEL.ROI_HEADS.NUM_CLASSES"
    return None, ""


def _tested_classes(cfg: CfgNode) -> tuple[int | None, str]:
    """As :func:`_model_classes`; RegionCLIP's detectors may test other classes than they train."""
    path = (cfg.MODEL.get("CLIP") or {}).get("OPENSET_TEST_TEXT_EMB_PATH")
    if not path or cfg.MODEL.META_ARCHITECTURE != "CLIPFastRCNN":
        return _model_classes(cfg)
    classes = Vocabulary.from_file(path, generate_names=True)
    return len(classes), "MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH"


def _classes_of(name: str) -> Sequence[str]:
    return MetadataCatalog.get(name).get("thing_classes") or ()


def _missing(name: str) -> bool:
    try:
        check_files(name)
    except DatasetError:
        return True
    return False


def _refuse_count(name: str, found: int, expected: int, key: str) -> None:
    fix = (
        f"set {key} {found}, or use another dataset"
        if key.endswith("NUM_CLASSES")
        else f"name the {found} classes in {key}, or use dataset:{name}"
    )
    raise DatasetError(
        f"{found} classes, but {key} stands for {expected}", where=f"dataset {name!r}", fix=fix
    )
