"""LVIS+COCO: LVIS images with the COCO boxes that LVIS does not have (specification 6.6).

Legend: A annotations of one image, ``boxes_A4`` XYWH in absolute pixels.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detic_ext.data.preparation.coco_synsets import COCO_SYNSETS
from detic_ext.data.preparation.content_checks import by_synset, objects_of

logger = logging.getLogger(__name__)

SAME_BOX_IOU = 0.7
Annotation = dict[str, Any]
_KEYS = ("image_id", "category_id", "bbox")


def merge_coco(
    lvis: Mapping[str, Any],
    coco: Mapping[str, Any],
    *,
    where: str,
    coco_where: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Add COCO annotations to the LVIS images that COCO has too.

    A COCO annotation is left out where its class has no LVIS class (``COCO_SYNSETS``), where LVIS
    says that the image does not show that class (``neg_category_ids``), or where an LVIS box of
    that class overlaps it with an IoU of at least 0.7. Crowd annotations stay marked as such.

    Args:
        lvis: content of the LVIS file.
        coco: content of the COCO instances file; image ids are those of LVIS.
        where: the LVIS file, for messages.
        coco_where: the COCO file, for messages.
        progress: called with (images done, images in all).

    Returns:
        The LVIS content with other ``annotations``: image by image, first LVIS's, then COCO's, with
        new ids from 1.

    Raises:
        DatasetError: missing fields, or LVIS categories without synsets.
    """
    lvis_ids = by_synset(objects_of(lvis, "categories", where=where), where=where)
    id_of_coco = {key: lvis_ids[name] for key, name in COCO_SYNSETS.items() if name in lvis_ids}
    own = _by_image(objects_of(lvis, "annotations", where=where, keys=_KEYS))
    others = _by_image(objects_of(coco, "annotations", where=coco_where, keys=_KEYS))
    merged: list[Annotation] = []
    images = objects_of(lvis, "images", where=where)
    without_class = sum(
        entry["category_id"] not in id_of_coco
        for image in images
        for entry in others.get(image["id"], ())
    )
    if without_class:
        logger.warning("%s: %d annotations have no LVIS class", coco_where, without_class)
    for done, image in enumerate(images, start=1):
        present = own.get(image["id"], [])
        candidates = [
            {**entry, "category_id": id_of_coco[entry["category_id"]]}
            for entry in others.get(image["id"], ())
            if entry["category_id"] in id_of_coco
        ]
        for entry in (*present, *_new_ones(present, candidates, image)):
            merged.append({**entry, "id": len(merged) + 1})
        if progress is not None:
            progress(done, len(images))
    return {**lvis, "annotations": merged}


def _by_image(annotations: Sequence[Annotation]) -> dict[Any, list[Annotation]]:
    found: dict[Any, list[Annotation]] = defaultdict(list)
    for entry in annotations:
        found[entry["image_id"]].append(entry)
    return found


def _new_ones(
    present: Sequence[Annotation], candidates: Sequence[Annotation], image: Mapping[str, Any]
) -> list[Annotation]:
    absent = set(image.get("neg_category_ids", ()))
    candidates = [entry for entry in candidates if entry["category_id"] not in absent]
    if not (present and candidates):
        return candidates
    overlap = ious(_boxes(candidates), _boxes(present)) >= SAME_BOX_IOU
    own_classes = np.array([entry["category_id"] for entry in present])
    classes = np.array([entry["category_id"] for entry in candidates])
    known = (overlap & (classes[:, None] == own_classes[None])).any(axis=1)
    return [entry for entry, there in zip(candidates, known, strict=True) if not there]


def _boxes(annotations: Sequence[Annotation]) -> NDArray[np.float64]:
    return np.array([entry["bbox"] for entry in annotations], dtype=np.float64).reshape(-1, 4)


def ious(boxes_A4: NDArray[np.float64], others_B4: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union [A, B] of XYWH boxes; 0 where both are empty."""
    low = np.maximum(boxes_A4[:, None, :2], others_B4[None, :, :2])
    ends_A, ends_B = (boxes[:, :2] + boxes[:, 2:] for boxes in (boxes_A4, others_B4))
    sides = np.clip(np.minimum(ends_A[:, None], ends_B[None]) - low, 0, None)
    common = sides[..., 0] * sides[..., 1]
    areas_A, areas_B = (boxes[:, 2] * boxes[:, 3] for boxes in (boxes_A4, others_B4))
    union = areas_A[:, None] + areas_B[None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
