"""The images of a pretraining: registered datasets of any kind, whose annotations are not used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_spec import load_dataset
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.indexing import Indexing
from ext_common.data.training_records import Part, TrainingRecords, packed
from ext_common.data.unlabelled_images import ImageList
from ext_common.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class TrainingImages:
    """Images in one sequence.

    Args:
        records: dataset dicts with ``dataset_source``.
        names: registered datasets, by source.
    """

    records: TrainingRecords
    names: tuple[str, ...]

    def roots(self) -> tuple[str, ...]:
        """Folder of the images of each dataset, where the names in a proposals file start.

        Raises:
            DatasetError: a dataset that does not say it, and whose images share no folder.
        """
        return tuple(map(_root, self.names, self.records.parts))


def training_images(cfg: CfgNode) -> TrainingImages:
    """The images of ``cfg.DATASETS.TRAIN``.

    Raises:
        ConfigError: no datasets.
        DatasetError: an unknown dataset, or one without images.
    """
    names = tuple(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("no training datasets", where="DATASETS.TRAIN", fix="name at least one")
    parts = []
    for source, name in enumerate(names):
        require_dataset(name, where="DATASETS.TRAIN")
        records = load_dataset(name, Indexing.from_config(cfg))
        if not len(records):
            raise DatasetError("no images", where=f"dataset {name!r}")
        parts.append(Part(_shared(records), source))
    return TrainingImages(TrainingRecords(parts), names)


def _root(name: str, part: Part) -> str:
    metadata = MetadataCatalog.get(name)
    # detectron2's own datasets: COCO and LVIS say image_root, PASCAL VOC dirname, Cityscapes image_dir
    for key in ("image_root", "dirname", "image_dir"):
        if folder := metadata.get(key, ""):
            return str(folder)
    records = (part[place] for place in range(len(part)))
    files = (str(r.get("file_name", "")) for r in records if "image_name" not in r)
    folders = {file[: file.rfind("/") + 1] for file in files}
    # compared as text, not with commonpath: a name is cut from its file's text by this folder
    common = os.path.commonprefix(list(folders)).rpartition("/")[0]
    if folders and not common:
        raise DatasetError(
            "its images have no folder in common, which their names in the proposals file start at",
            where=f"dataset {name!r}",
            fix="set image_root in its metadata, or image_name in its records",
        )
    return common


def _shared(records: Sequence[dict[str, Any]]) -> Any:
    """Images in a form that forked workers share; annotations are left out where they lie loose."""
    if isinstance(records, ImageList | IndexedRecords):
        return records
    kept = ("file_name", "image_id", "image_name", "height", "width", "tar_index")
    return packed([{key: r[key] for key in kept if key in r} for r in records])
