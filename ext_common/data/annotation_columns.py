"""The ``annotations`` of an annotation file as columns: what checks, sampling and the index need.

Legend: A annotations, ``boxes_A4`` XYWH in absolute pixels (the JSON's own order).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data import problem_kinds as kinds
from ext_common.data.findings import Findings
from ext_common.data.id_column import IdColumn, Unusable

MASK_NONE, MASK_POLYGONS, MASK_RLE = 0, 1, 2
"""Values of ``AnnotationColumns.masks_A``."""

_NO_ID = Unusable(None)
_NAN = float("nan")


class AnnotationColumns:
    """Collects annotations one after the other and notes what is wrong with each by itself.

    What needs images and categories is checked by ``annotation_checks.check_annotations``.

    Args:
        findings: where problems are noted.

    Attributes:
        ids, image_ids, category_ids: as in the file; an annotation may have no id.
        strange: places of entries that are no objects.
        bad_masks: places of entries whose polygons are malformed.
        bad_captions: places of entries without a caption, in files of captions.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.ids, self.image_ids, self.category_ids = IdColumn(), IdColumn(), IdColumn()
        self.strange: set[int] = set()
        self.bad_masks: set[int] = set()
        self.bad_captions: set[int] = set()
        self._boxes = array("d")
        self._crowd, self._masks, self._boxed = bytearray(), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, entry: Any) -> None:
        """Check one entry of ``annotations``; crowds are not looked at closely."""
        if not isinstance(entry, dict):
            self._findings.add(kinds.ANNOTATION_ENTRY, len(self))
            self.strange.add(len(self))
            entry = {"iscrowd": 1}
        self.ids.append(entry.get("id", _NO_ID))
        self.image_ids.append(entry.get("image_id"))
        self.category_ids.append(entry.get("category_id"))
        crowd = bool(entry.get("iscrowd", 0))
        self._crowd.append(crowd)
        box = None if crowd else self._checked_box(entry)
        self._boxed.append(box is not None)
        self._boxes.extend(box or (_NAN,) * 4)
        self._masks.append(MASK_NONE if crowd else self._checked_mask(entry))

    @property
    def boxes_A4(self) -> NDArray[np.float64]:
        """float64 [A, 4]; NaN where there is none."""
        return np.asarray(self._boxes).reshape(-1, 4)

    def crowd_at(self, place: int) -> bool:
        """Whether one annotation is a region of many objects."""
        return bool(self._crowd[place])

    @property
    def crowd_A(self) -> NDArray[np.bool_]:
        """bool [A]: regions of many objects, which are left out."""
        return np.frombuffer(bytes(self._crowd), dtype=bool)

    @property
    def boxed_A(self) -> NDArray[np.bool_]:
        """bool [A]: whether the box is four numbers."""
        return np.frombuffer(bytes(self._boxed), dtype=bool)

    @property
    def masks_A(self) -> NDArray[np.uint8]:
        """uint8 [A]: :data:`MASK_NONE`, :data:`MASK_POLYGONS` or :data:`MASK_RLE`."""
        return np.frombuffer(bytes(self._masks), dtype=np.uint8)

    def name(self, place: int) -> str:
        """How messages name an annotation: its id, or its image where it has none."""
        own_id = self.ids[place]
        return f"(no id, of image {self.image_ids[place]})" if own_id is _NO_ID else str(own_id)

    def _checked_box(self, entry: Mapping[str, Any]) -> list[float] | None:
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            return box
        self._findings.add(kinds.BOX_TYPE, self.name(len(self) - 1))
        return None

    def _checked_mask(self, entry: Mapping[str, Any]) -> int:
        mask = entry.get("segmentation")
        if not mask:
            return MASK_NONE
        if isinstance(mask, dict):  # run-length encoded
            return MASK_RLE
        if not isinstance(mask, list) or not all(
            isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in mask
        ):
            self._findings.add(kinds.POLYGON_TYPE, self.name(len(self) - 1))
            self.bad_masks.add(len(self) - 1)
        elif any(len(polygon) < 6 for polygon in mask):
            self._findings.add(kinds.POLYGON_SHORT, self.name(len(self) - 1))
        return MASK_POLYGONS


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file can be a coordinate."""
    # an integer beyond float64 is no coordinate
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1000)
