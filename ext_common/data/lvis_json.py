"""COCO- and LVIS-style annotations as detectron2's dataset dicts (Detic specification 6.5).

What differs from detectron2's LVIS loader: classes are numbered by sorted category id, so that any
class list works; ``neg_category_ids``, image labels (``pos_category_ids``) and captions are kept;
image names come from ``file_name``, else from ``coco_url``, else the image lies in a tar
(``tar_index``); crowd annotations are left out; everything is checked first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from ext_common.data import annotation_checks as checks
from ext_common.data import problem_kinds as kinds
from ext_common.data.annotation_columns import AnnotationColumns
from ext_common.data.findings import Findings
from ext_common.data.image_columns import ImageColumns
from ext_common.data.image_paths import check_links, image_name
from ext_common.data.json_files import read_json
from ext_common.data.label_table import row_starts
from ext_common.errors import DatasetError

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class LoadOptions:
    """How strictly annotations are read.

    Args:
        bad_boxes: boxes that are empty, not finite or outside their image: "error"; "drop" them;
            "clip" all boxes at the border and drop what is left empty.
        labels_required: every image needs at least one of ``pos_category_ids``.
        short_coco_names: file names that start with "COCO" keep their last 16 characters, as the
            LVIS files need (their names are those of COCO 2014, the folders those of COCO 2017).
        allow_links: symbolic links may lead out of the image root.
    """

    bad_boxes: str = "error"
    labels_required: bool = False
    short_coco_names: bool = True
    allow_links: bool = False

    def __post_init__(self) -> None:
        if self.bad_boxes not in checks.BAD_BOX_POLICIES:
            raise DatasetError(
                f"unknown policy {self.bad_boxes!r}",
                where="bad_boxes",
                fix=f"one of {', '.join(checks.BAD_BOX_POLICIES)}",
            )


def load_lvis_json(
    json_file: str | Path, image_root: str, options: LoadOptions | None = None
) -> list[Record]:
    """Read an annotation file in the COCO or LVIS layout.

    Args:
        json_file: the file.
        image_root: folder that image names are relative to.
        options: default :class:`LoadOptions`.

    Returns:
        One dict per image in order of image ids: ``file_name`` (or ``tar_index``), ``height``,
        ``width`` (pixels), ``image_id``, ``not_exhaustive_category_ids`` (the file's ids),
        ``neg_category_ids`` (contiguous), ``annotations`` with ``bbox`` (XYWH pixels),
        ``bbox_mode``, ``category_id`` (contiguous) and, where the file has it, ``segmentation``;
        where the file has them ``pos_category_ids`` (contiguous), ``captions``,
        ``caption_features``.

    Raises:
        DatasetError: unreadable file, missing fields, unknown or repeated ids, bad boxes, labels
            or captions, or names that leave the image root.
    """
    return dataset_dicts(read_json(json_file), image_root, str(json_file), options)


def dataset_dicts(
    content: Mapping[str, Any], image_root: str, where: str, options: LoadOptions | None = None
) -> list[Record]:
    """The same from content that is in memory; ``where`` names it in errors."""
    options = options or LoadOptions()
    classes = checks.contiguous_ids(
        checks.records_of(content, "categories", where=where), where=where
    )
    entries = checks.records_of(content, "images", where=where)
    objects = content.get("annotations")
    objects = [] if objects is None else checks.records_of(content, "annotations", where=where)
    findings = Findings()
    images = collect_images(entries, findings, options)
    annotations = collect_annotations(objects, findings)
    checked = checked_content(images, annotations, classes, findings, options, where)
    if not options.allow_links:
        names = (image_name(entry, short_coco_names=options.short_coco_names) for entry in entries)
        check_links(image_root, [name for name in names if isinstance(name, str)], where=where)
    starts_N1, kept_K = group_by_image(checked, len(images))
    records = []
    for place in images.ids.order().tolist():
        own = [objects[kept] for kept in kept_K[starts_N1[place] : starts_N1[place + 1]].tolist()]
        records.append(make_record(entries[place], own, classes, image_root, options))
    logger.info("%s: %d images, %d classes", where, len(records), len(classes))
    return records


def collect_images(
    entries: Iterable[Any], findings: Findings, options: LoadOptions
) -> ImageColumns:
    """The columns of ``images``."""
    images = ImageColumns(
        findings,
        labels_required=options.labels_required,
        short_coco_names=options.short_coco_names,
    )
    for entry in entries:
        images.add(entry)
    return images


def collect_annotations(entries: Iterable[Any], findings: Findings) -> AnnotationColumns:
    """The columns of ``annotations``."""
    annotations = AnnotationColumns(findings)
    for entry in entries:
        annotations.add(entry)
    return annotations


def checked_content(
    images: ImageColumns,
    annotations: AnnotationColumns,
    classes: Mapping[int, int],
    findings: Findings,
    options: LoadOptions,
    where: str,
) -> checks.ResolvedAnnotations:
    """Check columns as a loader does: errors are raised, what is left out is logged.

    Raises:
        DatasetError: the first kind of problem that the options do not tolerate.
    """
    checks.check_images(images, classes, findings)
    resolved = checks.check_annotations(annotations, images, classes, findings)
    findings.refuse(where=where, tolerated=() if options.bad_boxes == "error" else kinds.BAD_BOXES)
    findings.log(kinds.BAD_BOXES, where=where, about="left out")
    for kind in (kinds.POLYGON_SHORT, kinds.CAPTION_LONG):
        findings.log([kind], where=where)
    return resolved


def group_by_image(
    resolved: checks.ResolvedAnnotations, images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Usable annotations by image.

    Args:
        resolved: A annotations.
        images: number of images N.

    Returns:
        ``starts_N1`` and ``kept_K``: the annotations of image n, in the order of the file, are
        ``kept_K[starts_N1[n] : starts_N1[n + 1]]``.
    """
    kept_K = np.flatnonzero(resolved.usable_A)
    owner_K = resolved.image_A[kept_K]
    if (owner_K[1:] < owner_K[:-1]).any():
        kept_K = kept_K[np.argsort(owner_K, kind="stable")]
    return row_starts(np.bincount(owner_K, minlength=images)), kept_K


def make_record(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    classes: Mapping[int, int],
    image_root: str,
    options: LoadOptions,
) -> Record:
    """One dataset dict, as :func:`load_lvis_json` describes it, from checked entries.

    Args:
        image: entry of ``images``.
        annotations: its usable annotations.
        classes: contiguous class index by category id.
        image_root: folder that its name is relative to.
        options: as in the check.
    """
    record = _image_record(image, classes)
    name = image_name(image, short_coco_names=options.short_coco_names)
    if isinstance(name, str):
        record["file_name"] = os.path.join(image_root, name)
    else:
        record["tar_index"] = name
    clip = options.bad_boxes == "clip"
    objects = []
    for annotation in annotations:
        box = annotation["bbox"]
        found = {
            "bbox": checks.clipped_box(box, image["width"], image["height"]) if clip else box,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": classes[annotation["category_id"]],
        }
        if annotation.get("segmentation"):
            found["segmentation"] = annotation["segmentation"]
        objects.append(found)
    record["annotations"] = objects
    return record


def images_per_class(content: Mapping[str, Any], where: str) -> list[dict[str, int]]:
    """How many images show each class, ``[{"id": category id, "image_count": n}]`` by sorted id.

    Counted over annotations, or over ``pos_category_ids`` where there are no annotations.

    Raises:
        DatasetError: missing fields or unknown categories.
    """
    classes = checks.contiguous_ids(
        checks.records_of(content, "categories", where=where), where=where
    )
    findings = Findings()
    images = collect_images(
        checks.records_of(content, "images", where=where), findings, LoadOptions()
    )
    annotations = collect_annotations(content.get("annotations") or (), findings)
    resolved = checks.check_annotations(annotations, images, classes, findings)
    return count_images(images, annotations, resolved, classes, where)


def count_images(
    images: ImageColumns,
    annotations: AnnotationColumns,
    resolved: checks.ResolvedAnnotations,
    classes: Mapping[int, int],
    where: str,
) -> list[dict[str, int]]:
    """:func:`images_per_class` of columns."""
    if len(annotations):
        class_L, owner_L = resolved.class_A, resolved.image_A
        unknown = [annotations.category_ids[int(n)] for n in np.flatnonzero(class_L < 0)]
    else:
        class_L = checks.class_indices(images.labels_L, classes)
        owner_L = np.repeat(np.arange(len(images)), np.diff(images.label_starts_N1))
        unknown = images.labels_L[class_L < 0].tolist()
    checks.refuse(unknown, "labels that are not in 'categories'", where=where)
    # one number per pair of image and class; its repeats are counted once
    pairs = np.unique((owner_L * len(classes) + class_L)[owner_L >= 0])
    counts = np.bincount(pairs % len(classes), minlength=len(classes)).tolist()
    return [{"id": key, "image_count": count} for key, count in zip(classes, counts, strict=True)]


def _image_record(image: Mapping[str, Any], classes: Mapping[int, int]) -> Record:
    record: Record = {
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": [classes[key] for key in image.get("neg_category_ids") or ()],
    }
    if "pos_category_ids" in image:
        record["pos_category_ids"] = [classes[key] for key in image["pos_category_ids"] or ()]
    for field in ("captions", "caption_features"):
        if field in image:
            record[field] = image[field]
    return record
