"""The dataset dicts of a training: several datasets in one list, filtered and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.common import DatasetFromList
from numpy.typing import NDArray

from ext_common.data.dataset_names import require_dataset
from ext_common.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def load_records(cfg: CfgNode, *, some_without_masks: bool = False) -> list[Record]:
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
    records = join_datasets(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if cfg.MODEL.MASK_ON:
        check_masks(
            records,
            names,
            polygons=cfg.INPUT.MASK_FORMAT == "polygon",
            some_without=some_without_masks,
        )
    return records


def join_datasets(names: Sequence[str], *, filter_empty: bool) -> list[Record]:
    """Load datasets and put them together.

    Args:
        names: registered datasets.
        filter_empty: leave out images that have neither an annotation (crowds do not count), nor
            image labels, nor captions. The original filters by annotations alone, and asks for
            False with image-label datasets; both give the same where that is obeyed.

    Returns:
        Dataset dicts, each with ``dataset_source`` = number of its dataset in ``names``.

    Raises:
        DatasetError: an unknown dataset, or one without images (left).
    """
    joined: list[Record] = []
    for source, name in enumerate(names):
        require_dataset(name, where="DATASETS.TRAIN")
        records = DatasetCatalog.get(name)
        if not records:
            raise DatasetError("no images", where=f"dataset {name!r}")
        if filter_empty:
            kept = [record for record in records if _teaches(record)]
            if len(kept) < len(records):
                logger.info("%s: left out %d images without labels", name, len(records) - len(kept))
            if not kept:
                raise DatasetError(
                    f"none of the {len(records)} images has an annotation",
                    where=f"dataset {name!r}",
                    fix="set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on them all the same",
                )
            records = kept
        else:
            empty = sum(not _teaches(record) for record in records)
            if empty:
                logger.info("%s: %d images without labels are kept", name, empty)
        joined.extend({**record, "dataset_source": source} for record in records)
    return joined


def check_masks(
    records: Sequence[Record], names: Sequence[str], *, polygons: bool, some_without: bool = False
) -> None:
    """With ``MODEL.MASK_ON`` every annotation needs a mask of the right form.

    Args:
        records: with ``dataset_source``.
        names: dataset names by source.
        polygons: whether ``INPUT.MASK_FORMAT`` is "polygon".
        some_without: a dataset may have no masks at all where another one has.

    Raises:
        ConfigError: the first annotation without a mask, or run-length encoded with polygons.
    """
    first_without: dict[int, str] = {}
    with_masks: set[int] = set()
    for record in records:
        source = record["dataset_source"]
        for annotation in record.get("annotations", ()):
            mask = annotation.get("segmentation")
            if mask and not (polygons and isinstance(mask, dict)):
                with_masks.add(source)
                continue
            where = f"dataset {names[source]!r}, image {record.get('image_id')}"
            if mask:
                raise ConfigError(
                    "a mask is run-length encoded and INPUT.MASK_FORMAT is polygon",
                    where=where,
                    fix="set INPUT.MASK_FORMAT bitmask",
                )
            first_without.setdefault(source, where)
    for source, where in first_without.items():
        if not some_without or source in with_masks or not with_masks:
            raise ConfigError(
                "MODEL.MASK_ON is True and an annotation has a box without a mask",
                where=where,
                fix="set MODEL.MASK_ON False, or give every annotation a segmentation",
            )


def aspects(records: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """int64 [N]: 0 where an image is wider than high, else 1 (specification 6.1).

    Raises:
        DatasetError: a record without ``width`` and ``height``.
    """
    for record in records:
        if "width" not in record or "height" not in record:
            raise DatasetError(
                f"image {record.get('image_id')!r} has no width and height",
                where=str(record.get("file_name", "")),
                fix="batches of one aspect need sizes: add them, "
                "or set DATALOADER.ASPECT_RATIO_GROUPING False",
            )
    return np.array([0 if r["width"] > r["height"] else 1 for r in records], dtype=np.int64)


def sources(records: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """int64 [N]: the records' ``dataset_source``."""
    return np.array([record["dataset_source"] for record in records], dtype=np.int64)


def serialised(records: list[Record]) -> DatasetFromList:
    """The records as bytes in one array, which forked loader workers share instead of copying."""
    return DatasetFromList(records, copy=False, serialize=True)


def _teaches(record: Mapping[str, Any]) -> bool:
    if record.get("pos_category_ids") or record.get("captions"):
        return True
    if "annotations" not in record:
        return True
    return any(not annotation.get("iscrowd", 0) for annotation in record["annotations"])
