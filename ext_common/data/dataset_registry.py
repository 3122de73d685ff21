"""Datasets listed in YAML files, registered in detectron2's catalogs (docs/data.md).

.. code-block:: yaml

    datasets:
      street_train: {type: lvis, json: train.json, images: photos}
      street_labels: {type: class_folders, images: labels, classes_from: street_train}
      photos: {type: image_folder, images: photos}

Registering opens no annotation file. The files are read when the dataset, its ``thing_classes`` or
its ``class_image_count`` is asked for.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ext_common.data.dataset_metadata import LazyMetadata
from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_spec import DATASET_TYPES, LAZY_KEYS, UNLABELLED_TYPES, DatasetSpec
from ext_common.data.lvis_json import LoadOptions
from ext_common.errors import DatasetError
from ext_common.yaml_safe import read_yaml

__all__ = [
    "register_dataset",
    "register_from_config",
    "register_from_yaml",
    "require_dataset",
    "unregister",
]

_REQUIRED = {
    "lvis": {"json", "images"},
    "coco": {"json", "images"},
    "image_labels": {"json", "images"},
    "class_folders": {"images"},
    "image_folder": {"images"},
    "image_tars": {"images"},
}
_CHECKS = {"bad_boxes", "allow_links"}
_OPTIONAL = {
    "lvis": {"evaluator", "groups", *_CHECKS},
    "coco": {"evaluator", "groups", *_CHECKS},
    "image_labels": {*_CHECKS},
    "class_folders": {
        "classes_from",
        "classes",
        "folder_map",
        "index",
        "unknown_folders",
        "bad_files",
        "allow_links",
    },
    "image_folder": set(),
    "image_tars": set(),
}
_EVALUATORS = {"lvis": "lvis", "coco": "coco"}


def register_from_config(cfg: CfgNode) -> list[str]:
    """Register the datasets of every file in ``cfg.DATASETS.REGISTRY``; returns their names.

    Raises:
        ConfigError, DatasetError: see :func:`register_from_yaml`.
    """
    return [name for path in cfg.DATASETS.REGISTRY for name in register_from_yaml(path)]


def register_from_yaml(path: str | Path) -> list[str]:
    """Register the datasets that a YAML file lists.

    Args:
        path: the file; relative paths in it are relative to its folder.

    Returns:
        The names, also of those that were registered before with the same content.

    Raises:
        ConfigError: no such file, or not plain YAML.
        DatasetError: a wrong entry, or a name that stands for something else already.
    """
    content = read_yaml(path)
    entries = content.get("datasets")
    if not isinstance(entries, dict) or set(content) != {"datasets"}:
        raise DatasetError(
            "expected one block 'datasets' of NAME: {type: ..., ...}",
            where=str(path),
            fix="docs/data.md shows an example",
        )
    folder = Path(path).expanduser().resolve().parent
    specs = [_spec(str(name), fields, folder, str(path)) for name, fields in entries.items()]
    for spec in specs:
        register_dataset(spec)
    return [spec.name for spec in specs]


def register_dataset(spec: DatasetSpec) -> None:
    """Register one dataset; the same again changes nothing.

    Raises:
        DatasetError: the name stands for another dataset.
    """
    if spec.name in DatasetCatalog:
        if DatasetCatalog[spec.name] != spec:
            raise DatasetError(
                f"dataset {spec.name!r} is registered already with other content",
                where=spec.json,
                fix="give one of the two another name",
            )
        return
    known: dict[str, Any] = {"image_root": spec.images}
    if spec.type != "class_folders" and spec.type not in UNLABELLED_TYPES:
        known["json_file"] = spec.json
    if spec.evaluator:
        known["evaluator_type"] = spec.evaluator
    if spec.groups:
        known["class_groups"] = {group: list(names) for group, names in spec.groups.items()}
    lazy = {key: functools.partial(spec.lazy_value, key) for key in LAZY_KEYS}
    if spec.known_classes:
        known["thing_classes"] = list(spec.known_classes)
        del lazy["thing_classes"]
    DatasetCatalog.register(spec.name, spec)
    MetadataCatalog[spec.name] = LazyMetadata(spec.name, lazy, spec.stamp, **known)


def unregister(name: str) -> None:
    """Forget a dataset, so that the name can be given again."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def _spec(name: str, fields: Any, folder: Path, path: str) -> DatasetSpec:
    """One entry of a YAML file, checked."""
    where = f"{path}, dataset {name!r}"
    kind = fields.get("type") if isinstance(fields, dict) else None
    if kind not in DATASET_TYPES:
        raise DatasetError(
            f"type {kind!r} is none of {', '.join(DATASET_TYPES)}",
            where=where,
            fix="docs/data.md shows an example",
        )
    _check_keys(fields, kind, where)
    return DatasetSpec(
        name=name,
        type=kind,
        images=_path(fields["images"], folder),
        json=_path(_annotation_file(fields, kind), folder),
        evaluator=_text(fields, "evaluator", where, _EVALUATORS.get(kind, "")),
        groups=_groups(fields.get("groups", {}), where),
        classes_from=_text(fields, "classes_from", where),
        classes=_classes(fields.get("classes", ()), folder, where),
        folder_map=_path(_text(fields, "folder_map", where), folder),
        unknown_folders=_text(fields, "unknown_folders", where, "error"),
        bad_files=_text(fields, "bad_files", where, "error"),
        load=LoadOptions(
            bad_boxes=_text(fields, "bad_boxes", where, "error"),
            labels_required=kind == "image_labels",
            short_coco_names=kind == "lvis",
            allow_links=_flag(fields, "allow_links", where),
        ),
    )


def _check_keys(fields: Mapping[str, Any], kind: str, where: str) -> None:
    known = {"type", *_REQUIRED[kind], *_OPTIONAL[kind]}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise DatasetError(
                f"unknown key {key!r} for type {kind}",
                where=where,
                fix=f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}",
            )
    missing = sorted(_REQUIRED[kind] - set(fields))
    if missing:
        raise DatasetError(f"missing {', '.join(missing)}", where=where)
    for key in _REQUIRED[kind]:
        _text(fields, key, where)
    if "classes" in fields and "classes_from" in fields:
        raise DatasetError("both 'classes' and 'classes_from' are given", where=where)


def _annotation_file(fields: Mapping[str, Any], kind: str) -> str:
    if kind in UNLABELLED_TYPES:
        return ""
    if kind != "class_folders":
        return str(fields["json"])
    return str(fields.get("index") or f"{str(fields['images']).rstrip('/')}.index.json")


def _path(text: str, folder: Path) -> str:
    if not text:
        return ""
    return str(folder / Path(text).expanduser())


def _text(fields: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    value = fields.get(key, default)
    if not isinstance(value, str) or (key in fields and not value):
        raise DatasetError(f"{key} is {value!r}, not a text", where=where)
    return value


def _flag(fields: Mapping[str, Any], key: str, where: str) -> bool:
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise DatasetError(f"{key} is {value!r}, not true or false", where=where)
    return value


def _classes(value: Any, folder: Path, where: str) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return _path(value, folder)
    return _names(value, "classes", where)


def _groups(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise DatasetError("groups is not a block of GROUP: [class names]", where=where)
    return {str(group): _names(names, f"group {group!r}", where) for group, names in value.items()}


def _names(value: Any, what: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise DatasetError(f"{what} is not a list of class names", where=where)
    return tuple(value)
