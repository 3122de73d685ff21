"""The images of a pretraining: registered datasets of any kind, whose annotations are not used."""

from __future__ import annotations

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
        roots: folder of the images of each.
    """

    records: TrainingRecords
    names: tuple[str, ...]
    roots: tuple[str, ...]


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
    roots = tuple(str(MetadataCatalog.get(name).get("image_root", "")) for name in names)
    return TrainingImages(TrainingRecords(parts), names, roots)


def _shared(records: Sequence[dict[str, Any]]) -> Any:
    """Images in a form that forked workers share; annotations are left out where they lie loose."""
    if isinstance(records, ImageList | IndexedRecords):
        return records
    kept = ("file_name", "image_id", "image_name", "height", "width", "tar_index")
    return packed([{key: r[key] for key in kept if key in r} for r in records])
