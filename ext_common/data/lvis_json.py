"""COCO- and LVIS-style annotations as detectron2's dataset dicts (Detic specification 6.5).

What differs from detectron2's LVIS loader: classes are numbered by sorted category id, so that any
class list works; ``neg_category_ids``, image labels (``pos_category_ids``) and captions are kept;
image names come from ``file_name``, else from ``coco_url``, else the image lies in a tar
(``tar_index``); crowd annotations are left out; everything is checked first.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ext_common.data import annotation_checks as checks
from ext_common.data.image_paths import check_links, leaves_root
from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError

logger = logging.getLogger(__name__)

Record = dict[str, Any]
_COCO_NAME_LENGTH = 16  # "000000123456.jpg"


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
    images = checks.records_of(content, "images", where=where)
    checks.check_images(images, where=where)
    checks.check_labels(images, classes, required=options.labels_required, where=where)
    checks.check_captions(images, where=where)
    names = _image_names(images, options, where)
    if not options.allow_links:
        check_links(image_root, [name for name in names.values() if name], where=where)
    objects = _objects(content, images, classes, options, where)
    records = []
    for image in sorted(images, key=lambda image: image["id"]):
        record = _image_record(image, classes)
        name = names[image["id"]]
        if name is None:
            record["tar_index"] = image["tar_index"]
        else:
            record["file_name"] = os.path.join(image_root, name)
        record["annotations"] = objects.get(image["id"], [])
        records.append(record)
    logger.info("%s: %d images, %d classes", where, len(records), len(classes))
    return records


def images_per_class(content: Mapping[str, Any], where: str) -> list[dict[str, int]]:
    """How many images show each class, ``[{"id": category id, "image_count": n}]`` by sorted id.

    Counted over annotations, or over ``pos_category_ids`` where there are no annotations.

    Raises:
        DatasetError: missing fields or unknown categories.
    """
    classes = checks.contiguous_ids(
        checks.records_of(content, "categories", where=where), where=where
    )
    images = checks.records_of(content, "images", where=where)
    annotations = content.get("annotations") or []
    shown: dict[int, set[Any]] = {category_id: set() for category_id in classes}
    unknown = []
    pairs = (
        ((entry.get("category_id"), entry.get("image_id")) for entry in annotations)
        if annotations
        else ((key, image["id"]) for image in images for key in image.get("pos_category_ids", []))
    )
    for category_id, image_id in pairs:
        if category_id in shown:
            shown[category_id].add(image_id)
        else:
            unknown.append(category_id)
    checks.refuse(unknown, "labels that are not in 'categories'", where=where)
    return [{"id": key, "image_count": len(found)} for key, found in shown.items()]


def _image_record(image: Mapping[str, Any], classes: Mapping[int, int]) -> Record:
    record: Record = {
        "height": image["height"],
        "width": image["width"],
        "image_id": image["id"],
        "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
        "neg_category_ids": [classes[key] for key in image.get("neg_category_ids", [])],
    }
    if "pos_category_ids" in image:
        record["pos_category_ids"] = [classes[key] for key in image["pos_category_ids"]]
    for field in ("captions", "caption_features"):
        if field in image:
            record[field] = image[field]
    return record


def _image_names(
    images: Sequence[Mapping[str, Any]], options: LoadOptions, where: str
) -> dict[Any, str | None]:
    """Name below the image root by image id; None for images in a tar."""
    names: dict[Any, str | None] = {}
    nameless, escaping = [], []
    for image in images:
        name = image.get("file_name")
        if name is None and "coco_url" in image:
            # scheme://host/train2017/000000123456.jpg
            name = str(image["coco_url"]).partition("://")[2].partition("/")[2]
        elif isinstance(name, str) and options.short_coco_names and name.startswith("COCO"):
            name = name[-_COCO_NAME_LENGTH:]
        if name is None and isinstance(image.get("tar_index"), int):
            names[image["id"]] = None
        elif not isinstance(name, str) or not name:
            nameless.append(image["id"])
        elif leaves_root(name):
            escaping.append(f"{image['id']} ({name!r})")
        else:
            names[image["id"]] = name
    checks.refuse(nameless, "images without 'file_name', 'coco_url' or 'tar_index'", where=where)
    checks.refuse(
        escaping,
        "images whose name leaves the image root",
        where=where,
        fix="name files relative to the image folder, without '..'",
    )
    return names


def _objects(
    content: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    classes: Mapping[int, int],
    options: LoadOptions,
    where: str,
) -> dict[Any, list[Record]]:
    """Annotations without crowds, by image id, in file order."""
    if content.get("annotations") is None:
        return {}
    by_id = {image["id"]: image for image in images}
    annotations = checks.records_of(content, "annotations", where=where)
    checks.check_references(annotations, by_id, classes, where)
    annotations = [entry for entry in annotations if not entry.get("iscrowd", 0)]
    boxes_A4, keep_A = checks.checked_boxes(
        annotations, by_id, policy=options.bad_boxes, where=where
    )
    checks.check_polygons(annotations, where=where)
    boxes = boxes_A4.tolist() if options.bad_boxes == "clip" else None
    objects: dict[Any, list[Record]] = defaultdict(list)
    for place in np.flatnonzero(keep_A).tolist():
        annotation = annotations[place]
        found = {
            "bbox": boxes[place] if boxes else annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": classes[annotation["category_id"]],
        }
        if annotation.get("segmentation"):
            found["segmentation"] = annotation["segmentation"]
        objects[annotation["image_id"]].append(found)
    return objects
