"""What sampling and checks need of all records, as arrays; of indexed records without reading them.

Legend: N records, K annotations of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.annotation_columns import MASK_NONE, MASK_POLYGONS, MASK_RLE
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.label_table import LabelTable
from ext_common.data.sampling import tag_labels

MASK_OF_CROWD = 3
"""Besides the values of ``annotation_columns``: a crowd's mask is not looked at."""


@dataclass(frozen=True)
class RecordColumns:
    """Columns of N records.

    Args:
        heights_N, widths_N: int32 pixels; 0 where a record does not say.
        objects: contiguous classes of the annotations, crowds included; -1 where there is none.
        masks_K: uint8, kind of mask of each annotation.
        tags: contiguous classes of the image labels.
        teaches_N: bool, whether there is an annotation (crowds do not count), an image label or a
            caption; also where a record has no list of annotations at all.
    """

    heights_N: NDArray[np.int32]
    widths_N: NDArray[np.int32]
    objects: LabelTable
    masks_K: NDArray[np.uint8]
    tags: LabelTable
    teaches_N: NDArray[np.bool_]

    @classmethod
    def joined(cls, columns: Sequence[RecordColumns]) -> RecordColumns:
        """Several datasets, one after the other."""
        return cls(
            np.concatenate([part.heights_N for part in columns]),
            np.concatenate([part.widths_N for part in columns]),
            LabelTable.joined([part.objects for part in columns]),
            np.concatenate([part.masks_K for part in columns]),
            LabelTable.joined([part.tags for part in columns]),
            np.concatenate([part.teaches_N for part in columns]),
        )

    def rows(self, places_M: NDArray[np.integer[Any]]) -> RecordColumns:
        """The columns of some records."""
        masks = LabelTable(self.objects.starts_N1, self.masks_K).rows(places_M)
        return RecordColumns(
            self.heights_N[places_M],
            self.widths_N[places_M],
            self.objects.rows(places_M),
            masks.values_L.astype(np.uint8, copy=False),
            self.tags.rows(places_M),
            self.teaches_N[places_M],
        )


def columns_of(records: Sequence[Mapping[str, Any]]) -> RecordColumns:
    """The columns of records in memory or of :class:`IndexedRecords`."""
    if isinstance(records, IndexedRecords):
        return _indexed(records)
    masks: list[int] = []
    for record in records:
        masks.extend(map(_mask_kind, record.get("annotations", ())))
    return RecordColumns(
        np.array([record.get("height", 0) for record in records], dtype=np.int32),
        np.array([record.get("width", 0) for record in records], dtype=np.int32),
        LabelTable.of(map(_object_classes, records)),
        np.array(masks, dtype=np.uint8),
        LabelTable.of(map(tag_labels, records)),
        np.array([_teaches(record) for record in records], dtype=bool),
    )


def _indexed(records: IndexedRecords) -> RecordColumns:
    arrays = records.annotations.arrays
    objects, tags = records.annotations.object_classes, records.annotations.labels
    teaches_N = (objects.counts_N > 0) | (tags.counts_N > 0) | (arrays["captioned"] > 0)
    return RecordColumns(
        arrays["height"], arrays["width"], objects, arrays["object_mask"], tags, teaches_N
    )


def _object_classes(record: Mapping[str, Any]) -> list[int]:
    return [annotation.get("category_id", -1) for annotation in record.get("annotations", ())]


def _mask_kind(annotation: Mapping[str, Any]) -> int:
    mask = annotation.get("segmentation")
    if annotation.get("iscrowd", 0):
        return MASK_OF_CROWD
    if not mask:
        return MASK_NONE
    return MASK_RLE if isinstance(mask, dict) else MASK_POLYGONS


def _teaches(record: Mapping[str, Any]) -> bool:
    if record.get("pos_category_ids") or record.get("captions"):
        return True
    if "annotations" not in record:
        return True
    return any(not annotation.get("iscrowd", 0) for annotation in record["annotations"])
