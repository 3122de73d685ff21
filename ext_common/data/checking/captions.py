"""Checking the layout of COCO's caption files: ``annotations`` with ``image_id`` and ``caption``."""

from __future__ import annotations

from typing import Any

from ext_common.data import problem_kinds as kinds
from ext_common.data.annotation_columns import AnnotationColumns
from ext_common.data.findings import Findings
from ext_common.data.image_columns import LONG_CAPTION

CAPTIONS = "captions"
"""Name of this type of dataset; not one of ``dataset_spec.DATASET_TYPES``."""

CATEGORIES: list[dict[str, Any]] = [{"id": 0, "name": "caption"}]
"""What stands for the classes that these files do not have."""


def add_caption(entry: Any, annotations: AnnotationColumns, findings: Findings) -> None:
    """Check one entry of ``annotations`` and add it as a crowd, which has no box to be checked."""
    if not isinstance(entry, dict):
        annotations.add(entry)
        return
    place = len(annotations)
    annotations.add({**entry, "iscrowd": 1, "category_id": 0})
    text = entry.get("caption")
    if not isinstance(text, str) or not text.strip():
        empty = isinstance(text, str)
        findings.add(
            kinds.CAPTION_BLANK if empty else kinds.CAPTION_MISSING, annotations.name(place)
        )
        annotations.bad_captions.add(place)
    elif len(text.split()) > LONG_CAPTION:
        findings.add(kinds.CAPTION_CUT, annotations.name(place))
