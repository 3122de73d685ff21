"""Checks of COCO- and LVIS-style content: every problem of a kind at once, the first ten by id.

Legend: A annotations, ``boxes_A4`` XYWH in absolute pixels (the JSON's own order).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import DatasetError

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
BAD_BOX_POLICIES = ("error", "drop", "clip")
_SHOWN = 10
_LVIS_V1_CLASSES = 1203


def first_ten(items: Sequence[object]) -> str:
    """The first ten of a list of ids or messages, and whether there are more."""
    return ", ".join(str(item) for item in items[:_SHOWN]) + (
        ", ..." if len(items) > _SHOWN else ""
    )


def refuse(problems: Sequence[object], what: str, *, where: str, fix: str = "") -> None:
    """Raise DatasetError ``"<count> <what>: <first ten>"`` where there are problems."""
    if problems:
        raise DatasetError(f"{len(problems)} {what}: {first_ten(problems)}", where=where, fix=fix)


def records_of(content: Mapping[str, Any], field: str, *, where: str) -> list[dict[str, Any]]:
    """The list of records under ``field``.

    Raises:
        DatasetError: missing, or not a list of objects.
    """
    records = content.get(field)
    if not isinstance(records, list):
        raise DatasetError(f"no list {field!r}", where=where, fix="use the COCO or LVIS layout")
    strange = [place for place, record in enumerate(records) if not isinstance(record, dict)]
    refuse(strange, f"entries of {field!r} that are not objects, at", where=where)
    return records


def contiguous_ids(categories: Sequence[Any], *, where: str) -> dict[int, int]:
    """Contiguous class index (0-based) of every category id, in order of the ids.

    Raises:
        DatasetError: no categories, a category without ``id`` or ``name``, an id given twice, or
            1203 categories (LVIS v1) whose ids are not 1..1203.
    """
    if not categories:
        raise DatasetError("'categories' is empty", where=where, fix="list the classes there")
    incomplete = [
        place
        for place, category in enumerate(categories)
        if not isinstance(category, dict)
        or not isinstance(category.get("id"), int)
        or not isinstance(category.get("name"), str)
    ]
    refuse(incomplete, "categories without an integer 'id' and a 'name', at", where=where)
    ids = [category["id"] for category in categories]
    refuse(duplicates(ids), "category ids given twice", where=where)
    if len(ids) == _LVIS_V1_CLASSES and sorted(ids) != list(range(1, _LVIS_V1_CLASSES + 1)):
        raise DatasetError(
            "1203 categories, as LVIS v1 has, but their ids are not 1..1203",
            where=where,
            fix="keep the ids of the LVIS v1 files",
        )
    return {category_id: index for index, category_id in enumerate(sorted(ids))}


def duplicates(ids: Sequence[Any]) -> list[Any]:
    """The ids that stand more than once, in order."""
    if len(set(ids)) == len(ids):
        return []
    return [key for key, count in Counter(ids).items() if count > 1]


def check_images(images: Sequence[Record], *, where: str) -> None:
    """Ids are unique and of one type; sizes are positive integers.

    Raises:
        DatasetError: otherwise.
    """
    without = [place for place, image in enumerate(images) if not _is_id(image.get("id"))]
    refuse(without, "images without an 'id', at", where=where)
    ids = [image["id"] for image in images]
    if len({type(key) for key in ids}) > 1:
        raise DatasetError("image ids are partly numbers and partly text", where=where)
    refuse(duplicates(ids), "image ids given twice", where=where)
    unsized = [
        image["id"]
        for image in images
        if not all(_is_size(image.get(side)) for side in ("height", "width"))
    ]
    refuse(unsized, "images without a positive integer 'height' and 'width'", where=where)


def check_references(
    annotations: Sequence[Record], images: Mapping[Any, Any], classes: Mapping[int, int], where: str
) -> None:
    """Annotation ids are unique; their images and categories exist.

    Raises:
        DatasetError: otherwise.
    """
    ids = [annotation["id"] for annotation in annotations if "id" in annotation]
    refuse(duplicates(ids), "annotation ids given twice", where=where)
    lost = [named(entry) for entry in annotations if entry.get("image_id") not in images]
    refuse(lost, "annotations of images that are not in 'images'", where=where)
    unknown = [
        f"{named(entry)} (category {entry.get('category_id')})"
        for entry in annotations
        if entry.get("category_id") not in classes
    ]
    refuse(unknown, "annotations with a category that is not in 'categories'", where=where)


def named(annotation: Record) -> str:
    """How messages name an annotation: its id, or its image where it has none."""
    if "id" in annotation:
        return str(annotation["id"])
    return f"(no id, of image {annotation.get('image_id')})"


def checked_boxes(
    annotations: Sequence[Record], images: Mapping[Any, Record], *, policy: str, where: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes of annotations whose images exist.

    A box is bad where it is not finite, has no width or height, or lies wholly outside its image.
    A box that is partly outside is good: the mapper clips it after augmentation.

    Args:
        policy: "error"; "drop" = bad boxes are left out and logged; "clip" = finite boxes are also
            cut at the image's border.

    Returns:
        ``boxes_A4`` and ``keep_A``, False for the boxes that are left out.

    Raises:
        DatasetError: a ``bbox`` that is not four numbers, or a bad box with "error"; annotations
            and images are named by id.
    """
    boxes_A4 = _as_array(annotations, where)
    sizes_A2 = np.array(
        [(images[a["image_id"]]["width"], images[a["image_id"]]["height"]) for a in annotations],
        dtype=np.float64,
    ).reshape(-1, 2)
    finite_A = np.isfinite(boxes_A4).all(axis=1)
    empty_A = finite_A & (boxes_A4[:, 2:] <= 0).any(axis=1)
    with np.errstate(invalid="ignore"):
        far_A = (boxes_A4[:, :2] >= sizes_A2) | (boxes_A4[:, :2] + boxes_A4[:, 2:] <= 0)
    outside_A = finite_A & ~empty_A & far_A.any(axis=1)
    keep_A: NDArray[np.bool_] = np.asarray(finite_A & ~empty_A & ~outside_A)
    problems = [
        f"{named(annotations[place])} of image {annotations[place]['image_id']} ({kind})"
        for kind, bad_A in (
            ("not finite", ~finite_A),
            ("empty or negative", empty_A),
            ("outside", outside_A),
        )
        for place in np.flatnonzero(bad_A).tolist()
    ]
    if policy == "error":
        fix = "repair them, or set bad_boxes: drop or clip"
        refuse(problems, "annotations with a bad box", where=where, fix=fix)
    elif problems:
        logger.warning(
            "%s: left out %d annotations with a bad box: %s",
            where,
            len(problems),
            first_ten(problems),
        )
    if policy == "clip":
        boxes_A4 = _clipped(boxes_A4, sizes_A2, keep_A)
    return boxes_A4, keep_A


def check_polygons(annotations: Sequence[Record], *, where: str) -> None:
    """Polygons have pairs of coordinates; fewer than three points are counted in the log.

    Raises:
        DatasetError: an odd number of coordinates, or a segmentation of another type.
    """
    strange, short = [], []
    for annotation in annotations:
        segmentation = annotation.get("segmentation") or []
        if isinstance(segmentation, dict):  # run-length encoded
            continue
        if not isinstance(segmentation, list) or not all(
            isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in segmentation
        ):
            strange.append(named(annotation))
        elif any(len(polygon) < 6 for polygon in segmentation):
            short.append(named(annotation))
    refuse(strange, "annotations whose polygons are not lists of x, y pairs", where=where)
    if short:
        logger.warning(
            "%s: %d annotations have polygons of fewer than three points: %s",
            where,
            len(short),
            first_ten(short),
        )


def check_labels(
    images: Sequence[Record], classes: Mapping[int, int], *, required: bool, where: str
) -> None:
    """``pos_category_ids`` and ``neg_category_ids`` name known classes, the first each once.

    Args:
        required: every image must have at least one positive class (image-label datasets).

    Raises:
        DatasetError: otherwise.
    """
    unknown, repeated, unlabelled = [], [], []
    for image in images:
        positive = image.get("pos_category_ids", [])
        for key in (*positive, *image.get("neg_category_ids", [])):
            if key not in classes:
                unknown.append(f"{image['id']} (category {key})")
        if len(set(positive)) != len(positive):
            repeated.append(image["id"])
        if required and not positive:
            unlabelled.append(image["id"])
    refuse(unknown, "images with a label that is not in 'categories'", where=where)
    refuse(repeated, "images with a label given twice in 'pos_category_ids'", where=where)
    refuse(
        unlabelled,
        "images without a label in 'pos_category_ids'",
        where=where,
        fix="an image-label dataset needs at least one per image",
    )


def check_captions(images: Sequence[Record], *, where: str) -> None:
    """``captions``, where given, is a list of texts.

    Raises:
        DatasetError: otherwise.
    """
    strange = [
        image["id"]
        for image in images
        if "captions" in image
        and not (
            isinstance(image["captions"], list)
            and all(isinstance(caption, str) for caption in image["captions"])
        )
    ]
    refuse(strange, "images whose 'captions' is not a list of texts", where=where)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _as_array(annotations: Sequence[Record], where: str) -> NDArray[np.float64]:
    boxes = [annotation.get("bbox") for annotation in annotations]
    strange = [
        named(annotation)
        for annotation, box in zip(annotations, boxes, strict=True)
        if not (
            isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
        )
    ]
    refuse(strange, "annotations whose 'bbox' is not four numbers", where=where)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _clipped(
    boxes_A4: NDArray[np.float64], sizes_A2: NDArray[np.float64], keep_A: NDArray[np.bool_]
) -> NDArray[np.float64]:
    clipped_A4 = boxes_A4.copy()
    low_K2 = np.maximum(boxes_A4[keep_A, :2], 0)
    high_K2 = np.minimum(boxes_A4[keep_A, :2] + boxes_A4[keep_A, 2:], sizes_A2[keep_A])
    clipped_A4[keep_A] = np.concatenate([low_K2, high_K2 - low_K2], axis=1)
    return clipped_A4
