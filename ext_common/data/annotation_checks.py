"""Checks of COCO- and LVIS-style content: every problem of a kind at once, the first ten by id.

The loaders, the index and ``tools/prepare_data.py check`` all use these; what can be told from one
entry alone is checked where it is collected (:mod:`image_columns`, :mod:`annotation_columns`).

Legend: A annotations, N images, C classes; ``boxes_A4`` XYWH in absolute pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data import problem_kinds as kinds
from ext_common.data.annotation_columns import AnnotationColumns
from ext_common.data.findings import SHOWN, Findings
from ext_common.data.id_column import IdColumn
from ext_common.data.image_columns import ImageColumns
from ext_common.errors import DatasetError

BAD_BOX_POLICIES = ("error", "drop", "clip")
_LVIS_V1_CLASSES = 1203


def first_ten(items: Sequence[object]) -> str:
    """The first ten of a list of ids or messages, and whether there are more."""
    return ", ".join(str(item) for item in items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")


def refuse(problems: Sequence[object], what: str, *, where: str, fix: str = "") -> None:
    """Raise DatasetError ``"<count> <what>: <first ten>"`` where there are problems."""
    if problems:
        raise DatasetError(f"{len(problems)} {what}: {first_ten(problems)}", where=where, fix=fix)


def records_of(content: Mapping[str, Any], field: str, *, where: str) -> list[Any]:
    """The list under ``field``.

    Raises:
        DatasetError: missing, or not a list.
    """
    records = content.get(field)
    if not isinstance(records, list):
        raise no_list(field, where)
    return records


def no_list(field: str, where: str) -> DatasetError:
    """The error for content without the list ``field``."""
    return DatasetError(f"no list {field!r}", where=where, fix="use the COCO or LVIS layout")


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
        or type(category.get("id")) is not int
        or not isinstance(category.get("name"), str)
    ]
    refuse(incomplete, "categories without an integer 'id' and a 'name', at", where=where)
    ids = [category["id"] for category in categories]
    twice = [key for key, count in Counter(ids).items() if count > 1]
    refuse(twice, "category ids given twice", where=where)
    if len(ids) == _LVIS_V1_CLASSES and sorted(ids) != list(range(1, _LVIS_V1_CLASSES + 1)):
        raise DatasetError(
            "1203 categories, as LVIS v1 has, but their ids are not 1..1203",
            where=where,
            fix="keep the ids of the LVIS v1 files",
        )
    return {category_id: index for index, category_id in enumerate(sorted(ids))}


def check_images(images: ImageColumns, classes: Mapping[int, int], findings: Findings) -> None:
    """Ids are unique and of one type; labels are known classes.

    Args:
        images: all of them.
        classes: contiguous index by category id.
        findings: where problems are noted.
    """
    findings.add_all(kinds.IMAGE_ID_TWICE, images.ids.repeated(), images.ids.__getitem__)
    texts_N = images.ids.of_type(str)
    numbers_N = images.ids.of_type(int)
    if texts_N.any() and numbers_N.any():
        fewer_N = texts_N if texts_N.sum() < numbers_N.sum() else numbers_N
        findings.add_all(
            kinds.IMAGE_IDS_MIXED, np.flatnonzero(fewer_N).tolist(), images.ids.__getitem__
        )
    unknown_L = np.flatnonzero(class_indices(images.labels_L, classes) < 0)
    owners_L = np.searchsorted(images.label_starts_N1, unknown_L, side="right") - 1
    names = [
        f"{images.ids[int(owner)]} (category {images.labels_L[label]})"
        for owner, label in zip(owners_L[:SHOWN], unknown_L[:SHOWN], strict=True)
    ]
    findings.add_all(kinds.LABEL_UNKNOWN, range(len(unknown_L)), names.__getitem__)
    for category_id, (count, first) in images.negative.items():
        if category_id not in classes:
            shown = [f"{image_id} (category {category_id})" for image_id in first]
            findings.add_all(kinds.LABEL_UNKNOWN, range(count), shown.__getitem__)


@dataclass(frozen=True)
class ResolvedAnnotations:
    """What annotations refer to, and which of them can be used.

    Args:
        image_A: int64 [A], place of the image; -1 where it is unknown.
        class_A: int64 [A], contiguous class index; -1 where it is unknown.
        usable_A: bool [A], no crowd and no problem (boxes that are partly outside are usable).
    """

    image_A: NDArray[np.int64]
    class_A: NDArray[np.int64]
    usable_A: NDArray[np.bool_]


def check_annotations(
    annotations: AnnotationColumns,
    images: ImageColumns,
    classes: Mapping[int, int],
    findings: Findings,
) -> ResolvedAnnotations:
    """Ids are unique, images and categories exist, boxes lie in their images.

    A box is bad where it is not finite, has no width or height, or lies wholly outside its image.
    A box that is partly outside is good: the mapper clips it after augmentation.
    """
    proper_A = np.ones(len(annotations), dtype=bool)
    proper_A[sorted(annotations.strange)] = False
    repeated = annotations.ids.repeated()
    findings.add_all(kinds.ANNOTATION_ID_TWICE, repeated, annotations.ids.__getitem__)
    image_A = images.ids.find(annotations.image_ids)
    lost_A = proper_A & (image_A < 0)
    findings.add_all(kinds.ANNOTATION_WITHOUT_IMAGE, _places(lost_A), annotations.name)
    class_A = _classes_of(annotations.category_ids, classes)
    findings.add_all(
        kinds.CATEGORY_UNKNOWN,
        _places(proper_A & (class_A < 0)),
        lambda place: f"{annotations.name(place)} (category {annotations.category_ids[place]})",
    )
    usable_A = annotations.boxed_A & (image_A >= 0) & (class_A >= 0)
    usable_A[repeated] = False
    usable_A &= _check_boxes(annotations, images, image_A, findings)
    return ResolvedAnnotations(image_A, class_A, usable_A)


def class_indices(
    category_ids: NDArray[np.integer[Any]], classes: Mapping[int, int]
) -> NDArray[np.int64]:
    """Contiguous class index of category ids, -1 for unknown ones."""
    known_C = np.array(sorted(classes), dtype=np.int64)
    near = np.minimum(np.searchsorted(known_C, category_ids), len(known_C) - 1)
    return np.where(known_C[near] == category_ids, near, -1)


def clipped_box(box: Sequence[float], width: int, height: int) -> list[float]:
    """The part of an XYWH box that lies in the image, XYWH."""
    left, top = max(box[0], 0), max(box[1], 0)
    return [left, top, min(box[0] + box[2], width) - left, min(box[1] + box[3], height) - top]


def _classes_of(category_ids: IdColumn, classes: Mapping[int, int]) -> NDArray[np.int64]:
    numbers_A = category_ids.numbers_N
    if numbers_A is not None:
        return class_indices(numbers_A, classes)
    by_id: dict[Any, int] = dict(classes)
    found = (by_id.get(category_ids[place], -1) for place in range(len(category_ids)))
    return np.fromiter(found, dtype=np.int64, count=len(category_ids))


def _check_boxes(
    annotations: AnnotationColumns,
    images: ImageColumns,
    image_A: NDArray[np.int64],
    findings: Findings,
) -> NDArray[np.bool_]:
    """bool [A]: good boxes of annotations whose image exists and has a size."""
    boxes_A4 = annotations.boxes_A4
    if not len(images):
        return np.zeros(len(annotations), dtype=bool)
    widths_A, heights_A = images.widths_N[image_A], images.heights_N[image_A]
    judged_A = annotations.boxed_A & (image_A >= 0) & (widths_A > 0)
    finite_A = np.isfinite(boxes_A4).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        empty_A = (boxes_A4[:, 2] <= 0) | (boxes_A4[:, 3] <= 0)
        right_A, bottom_A = boxes_A4[:, 0] + boxes_A4[:, 2], boxes_A4[:, 1] + boxes_A4[:, 3]
        outside_A = (
            (boxes_A4[:, 0] >= widths_A)
            | (boxes_A4[:, 1] >= heights_A)
            | (right_A <= 0)
            | (bottom_A <= 0)
        )
        over_A = (
            (boxes_A4[:, 0] < 0)
            | (boxes_A4[:, 1] < 0)
            # converted annotations are often off by rounding; half a pixel is no mistake
            | (right_A > widths_A + 0.5)
            | (bottom_A > heights_A + 0.5)
        )
    good_A = judged_A & finite_A & ~empty_A & ~outside_A
    for kind, label, bad_A in (
        (kinds.BOX_NOT_FINITE, "not finite", judged_A & ~finite_A),
        (kinds.BOX_EMPTY, "empty or negative", judged_A & finite_A & empty_A),
        (kinds.BOX_OUTSIDE, "outside", judged_A & finite_A & ~empty_A & outside_A),
        (kinds.BOX_OVER_EDGE, "over the edge", good_A & over_A),
    ):
        findings.add_all(kind, _places(bad_A), _box_namer(annotations, label))
    return good_A


def _box_namer(annotations: AnnotationColumns, label: str) -> Any:
    return lambda place: (
        f"{annotations.name(place)} of image {annotations.image_ids[place]} ({label})"
    )


def _places(which_A: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.flatnonzero(which_A)
