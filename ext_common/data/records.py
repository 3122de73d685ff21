"""The dataset dicts of a training: several datasets in one sequence, filtered and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from ext_common.data.annotation_columns import MASK_NONE, MASK_RLE
from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_spec import load_dataset
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.indexing import Indexing
from ext_common.data.label_table import LabelTable
from ext_common.data.record_columns import MASK_OF_CROWD, columns_of
from ext_common.data.training_records import (
    Part,
    TrainingRecords,
    columns_and_sources,
    packed,
)
from ext_common.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Records = Sequence[Mapping[str, Any]]


def load_records(cfg: CfgNode, *, some_without_masks: bool = False) -> TrainingRecords:
    """All records of ``cfg.DATASETS.TRAIN`` in order, ready for training.

    See :func:`join_datasets` and :func:`check_masks`.

    Args:
        cfg: configuration.
        some_without_masks: with ``MODEL.MASK_ON`` whole datasets may have boxes alone.

    Raises:
        ConfigError: no datasets, or options that these loaders do not have.
        DatasetError: unknown or unusable datasets.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise ConfigError("no training datasets", where="DATASETS.TRAIN", fix="name at least one")
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise ConfigError("not supported", where=f"MODEL.{key}", fix="set it to False")
    records = join_datasets(
        names,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        indexing=Indexing.from_config(cfg),
    )
    if cfg.MODEL.MASK_ON:
        check_masks(
            records,
            names,
            polygons=cfg.INPUT.MASK_FORMAT == "polygon",
            some_without=some_without_masks,
        )
    return records


def join_datasets(
    names: Sequence[str], *, filter_empty: bool, indexing: Indexing | None = None
) -> TrainingRecords:
    """Load datasets and put them together.

    Args:
        names: registered datasets.
        filter_empty: leave out images that have neither an annotation (crowds do not count), nor
            image labels, nor captions. The original filters by annotations alone, and asks for
            False with image-label datasets; both give the same where that is obeyed.
        indexing: which annotation files are not read into memory.

    Returns:
        Dataset dicts, each with ``dataset_source`` = number of its dataset in ``names``.

    Raises:
        DatasetError: an unknown dataset, or one without images (left).
    """
    parts = []
    for source, name in enumerate(names):
        require_dataset(name, where="DATASETS.TRAIN")
        records = load_dataset(name, indexing)
        if not len(records):
            raise DatasetError("no images", where=f"dataset {name!r}")
        teaches_N = columns_of(records).teaches_N
        empty = int((~teaches_N).sum())
        if not empty or not filter_empty:
            if empty:
                logger.info("%s: %d images without labels are kept", name, empty)
            parts.append(Part(records, source))
            continue
        if empty == len(records):
            raise DatasetError(
                f"none of the {len(records)} images has an annotation",
                where=f"dataset {name!r}",
                fix="set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on them all the same",
            )
        logger.info("%s: left out %d images without labels", name, empty)
        parts.append(Part(records, source, np.flatnonzero(teaches_N)))
    return TrainingRecords(parts)


def check_masks(
    records: Records, names: Sequence[str], *, polygons: bool, some_without: bool = False
) -> None:
    """With ``MODEL.MASK_ON`` every annotation but crowds needs a mask of the right form.

    Args:
        records: with ``dataset_source``.
        names: dataset names by source.
        polygons: whether ``INPUT.MASK_FORMAT`` is "polygon".
        some_without: a dataset may have no masks at all where another one has.

    Raises:
        ConfigError: the first annotation without a mask, or run-length encoded with polygons.
    """
    columns, sources_N = columns_and_sources(records)
    owners_K = columns.objects.owners_L
    sources_K = sources_N[owners_K]

    def where(which_K: NDArray[np.bool_]) -> str:
        place = int(owners_K[int(np.flatnonzero(which_K)[0])])
        return f"dataset {names[sources_N[place]]!r}, image {records[place].get('image_id')}"

    encoded_K = columns.masks_K == MASK_RLE
    if polygons and encoded_K.any():
        raise ConfigError(
            "a mask is run-length encoded and INPUT.MASK_FORMAT is polygon",
            where=where(encoded_K),
            fix="set INPUT.MASK_FORMAT bitmask",
        )
    without_K = columns.masks_K == MASK_NONE
    masked_K = ~without_K & (columns.masks_K != MASK_OF_CROWD)
    with_masks = set(sources_K[masked_K].tolist())
    for source in sorted(set(sources_K[without_K].tolist())):
        if not some_without or source in with_masks or not with_masks:
            raise ConfigError(
                "MODEL.MASK_ON is True and an annotation has a box without a mask",
                where=where(without_K & (sources_K == source)),
                fix="set MODEL.MASK_ON False, or give every annotation a segmentation",
            )


def aspects(records: Records) -> NDArray[np.int64]:
    """int64 [N]: 0 where an image is wider than high, else 1 (specification 6.1).

    Raises:
        DatasetError: a record without ``width`` and ``height``.
    """
    columns, _ = columns_and_sources(records)
    unknown_N = (columns.widths_N <= 0) | (columns.heights_N <= 0)
    if unknown_N.any():
        record = records[int(np.flatnonzero(unknown_N)[0])]
        raise DatasetError(
            f"image {record.get('image_id')!r} has no width and height",
            where=str(record.get("file_name", "")),
            fix="batches of one aspect need sizes: add them, "
            "or set DATALOADER.ASPECT_RATIO_GROUPING False",
        )
    return np.where(columns.widths_N > columns.heights_N, 0, 1).astype(np.int64)


def sources(records: Records) -> NDArray[np.int64]:
    """int64 [N]: the records' ``dataset_source``."""
    return columns_and_sources(records)[1]


def object_classes(records: Records) -> LabelTable:
    """Classes of the annotations of every record."""
    return columns_and_sources(records)[0].objects


def image_labels(records: Records) -> LabelTable:
    """Image labels of every record."""
    return columns_and_sources(records)[0].tags


def serialised(records: Records) -> Any:
    """The records in a form that forked loader workers share instead of copying."""
    if isinstance(records, TrainingRecords):
        return records.shared()
    return records if isinstance(records, IndexedRecords) else packed(records)
