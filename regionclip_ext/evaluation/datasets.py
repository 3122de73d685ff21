"""The published dataset names (specification 7), below ``DETECTRON2_DATASETS``.

Registration only: no file is opened before a dataset or its classes are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data import DatasetCatalog

from ext_common.data.dataset_registry import register_dataset
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.lvis_json import LoadOptions

_SPLITS = {"all": 65, "b": 48, "t": 17}
_PARTS = {"train": "train2017", "test": "val2017"}
LVIS_BASE = "lvis_v1_train_base"
"""LVIS without rare classes, numbered 0 to 865 (published as plain ``lvis_v1_train``)."""


def register_builtin_datasets(root: str) -> list[str]:
    """Register the names that are still free.

    Args:
        root: folder that the datasets lie below.

    Returns:
        Names that were registered.
    """
    options = LoadOptions(bad_boxes="drop", allow_links=True)
    specs = [
        DatasetSpec(
            name=f"coco_2017_ovd_{split}_{part}",
            type="coco",
            images=str(Path(root) / "coco" / folder),
            json=str(Path(root) / "coco" / "annotations" / f"ovd_ins_{folder}_{split}.json"),
            evaluator="coco_ovd",
            load=options,
        )
        for split in _SPLITS
        for part, folder in _PARTS.items()
    ]
    specs.append(
        DatasetSpec(
            name=LVIS_BASE,
            type="lvis",
            images=str(Path(root) / "coco"),
            json=str(Path(root) / "lvis" / "lvis_v1_train_base.json"),
            load=options,
        )
    )
    # published names of what detectron2 has as lvis_v1_*: all classes, numbered 0 to 1202
    specs += [
        DatasetSpec(
            name=f"lvis_v1_{part}_fullysup",
            type="lvis",
            images=str(Path(root) / "coco"),
            json=str(Path(root) / "lvis" / f"lvis_v1_{part}.json"),
            evaluator="lvis",
            load=options,
        )
        for part in ("train", "val")
    ]
    fresh = [spec for spec in specs if spec.name not in DatasetCatalog]
    for spec in fresh:
        register_dataset(spec)
    return [spec.name for spec in fresh]


register_builtin_datasets(os.getenv("DETECTRON2_DATASETS", "datasets"))
