"""Frequency files: how many images and objects each class has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from detic_ext.data.preparation.content_checks import objects_of
from ext_common.data.lvis_json import images_per_class
from ext_common.errors import DatasetError

Category = dict[str, Any]


def count_categories(content: Mapping[str, Any], *, where: str) -> list[Category]:
    """The categories with ``image_count`` and ``instance_count``.

    Annotations are counted, or image labels (``pos_category_ids``) where there are none; a class
    without any has 0.

    Raises:
        DatasetError: missing fields, or labels of unknown classes.
    """
    categories = objects_of(content, "categories", where=where)
    images_of = {entry["id"]: entry["image_count"] for entry in images_per_class(content, where)}
    annotations = content.get("annotations") or []
    instances = Counter(entry["category_id"] for entry in annotations) if annotations else images_of
    return [
        {
            **category,
            "image_count": images_of[category["id"]],
            "instance_count": instances[category["id"]],
        }
        for category in categories
    ]


def with_frequency(
    categories: Sequence[Mapping[str, Any]], *, rare_below: int = 10, common_below: int = 100
) -> list[Category]:
    """Set ``frequency`` from ``image_count``: "r", "c" or "f".

    Args:
        categories: of :func:`count_categories`.
        rare_below: fewer images than this are rare. LVIS itself calls 10 images rare as well.
        common_below: fewer images than this are common.

    Raises:
        DatasetError: thresholds that are not in ascending order.
    """
    if not 0 <= rare_below <= common_below:
        raise DatasetError(
            f"thresholds {rare_below} and {common_below}", fix="give the smaller one for rare"
        )
    return [
        {**category, "frequency": _frequency(category["image_count"], rare_below, common_below)}
        for category in categories
    ]


def _frequency(images: int, rare_below: int, common_below: int) -> str:
    if images < rare_below:
        return "r"
    return "c" if images < common_below else "f"
