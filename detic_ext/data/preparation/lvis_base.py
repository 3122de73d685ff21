"""LVIS-base: the annotations of frequent and common classes alone (specification 6.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detic_ext.data.preparation.content_checks import objects_of, require_field

RARE = "r"


def without_rare(content: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Leave out the annotations of rare classes; images and classes stay.

    Args:
        content: LVIS content; ``frequency`` of a category is "r", "c" or "f".
        where: the file, for messages.

    Raises:
        DatasetError: categories without a frequency.
    """
    categories = objects_of(content, "categories", where=where)
    require_field(categories, "frequency", where=where)
    rare = {category["id"] for category in categories if category["frequency"] == RARE}
    kept = [
        entry
        for entry in objects_of(content, "annotations", where=where, keys=["category_id"])
        if entry["category_id"] not in rare
    ]
    return {**content, "annotations": kept}
