"""The files of open-vocabulary COCO, from COCO's instances files (specification 6.6, 6.7)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from detic_ext.data.preparation.content_checks import objects_of
from ext_common.data.annotation_checks import contiguous_ids, refuse

_KEYS = ("image_id", "category_id")


def only_classes(content: Mapping[str, Any], ids: Collection[int], *, where: str) -> dict[str, Any]:
    """The annotations of some classes, the images that have one, and these classes.

    Args:
        content: of a COCO instances file.
        ids: category ids.
        where: the file, for messages.

    Raises:
        DatasetError: missing fields, or ids that the file does not have.
    """
    categories = objects_of(content, "categories", where=where)
    missing = sorted(set(ids) - set(contiguous_ids(categories, where=where)))
    refuse(missing, "category ids that the file does not have", where=where)
    annotations = [
        entry
        for entry in objects_of(content, "annotations", where=where, keys=_KEYS)
        if entry["category_id"] in ids
    ]
    shown = {entry["image_id"] for entry in annotations}
    return {
        **content,
        "images": [
            image for image in objects_of(content, "images", where=where) if image["id"] in shown
        ],
        "annotations": annotations,
        "categories": [category for category in categories if category["id"] in ids],
    }


def original_order(
    content: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], *, where: str
) -> dict[str, Any]:
    """The same annotations under the full class list, so that one classifier serves all splits.

    Args:
        content: of an annotation file whose ``categories`` are some of the full list.
        categories: the full list, e.g. COCO's 80.
        where: the file, for messages.

    Raises:
        DatasetError: an id that the full list lacks, or that means another class there.
    """
    names = {category["id"]: category.get("name") for category in categories}
    strange = [
        f"{category['id']} ({category.get('name')})"
        for category in objects_of(content, "categories", where=where)
        if names.get(category["id"]) != category.get("name")
    ]
    refuse(
        strange,
        "categories that are not in the full list under that id",
        where=where,
        fix="give the file that the split was made from",
    )
    return {**content, "categories": list(categories)}
