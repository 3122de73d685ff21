"""Precision of detections where only some classes of an image are annotated (LVIS).

An image is scored for the classes that are annotated in it (positive) or verified to be absent
(``neg_category_ids``); other detections are dropped. An unmatched detection of a class that is not
annotated exhaustively (``not_exhaustive_category_ids``) is no mistake. Source: Gupta et al., LVIS,
2019, section 2, and the rules of the ``lvis`` package.

Shapes: T IoU thresholds, R recall points, K classes, A area ranges, D detections and G objects of
one class in one image, N detections of one class in all images.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from ext_common.evaluation.ground_truth import GroundTruth
from ext_common.evaluation.masks import to_rle
from ext_common.evaluation.matching import (
    IOU_THRESHOLDS_T,
    RECALL_POINTS_R,
    match_by_score,
    outside_areas,
)

Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ClassInImage:
    """Outcome for one class in one image.

    Attributes:
        scores_D: descending.
        hit_TAD: matched to an object that counts.
        miss_TAD: unmatched and counted as a mistake; neither = ignored.
        num_objects_A: objects that count.
    """

    scores_D: np.ndarray
    hit_TAD: np.ndarray
    miss_TAD: np.ndarray
    num_objects_A: np.ndarray


def federated_precision(
    truth: GroundTruth, detections: Records, task: str, *, max_dets: int = 300
) -> np.ndarray:
    """Precision at IoU thresholds, recall points, classes (contiguous order) and area ranges.

    Args:
        truth: annotations.
        detections: COCO result records with the dataset's category ids.
        task: "bbox" or "segm".
        max_dets: detections kept per image, over all classes, highest scores first.

    Returns:
        [T, R, K, A] in [0, 1], -1 where a class has no ground truth in the area range.
    """
    objects_of = by_image(ann for ann in truth.annotations if ann["area"] > 0)
    found_of = by_image(detections)
    outcomes: dict[int, list[ClassInImage]] = defaultdict(list)
    for image_id, image in truth.images.items():
        objects = by_class(objects_of.get(image_id, ()))
        found = by_class(top_scores(found_of.get(image_id, ()), max_dets))
        partly = set(image.get("not_exhaustive_category_ids") or ())
        for key in scored_classes(image, objects, found):
            outcomes[key].append(
                _evaluate(objects.get(key, ()), found.get(key, ()), image, task, key in partly)
            )
    return np.stack([_precision(outcomes.get(key, ())) for key in truth.class_ids], axis=2)


def by_image(records: Iterable[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """Records of every image, in their order."""
    return _grouped(records, "image_id")


def by_class(records: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Records of every category id, in their order."""
    return _grouped(records, "category_id")


def top_scores(detections: Records, limit: int) -> Records:
    """The ``limit`` highest scores of an image in descending order; equal scores keep theirs."""
    return sorted(detections, key=lambda found: -found["score"])[:limit]


def scored_classes(
    image: Mapping[str, Any], objects: Mapping[int, Records], found: Mapping[int, Records]
) -> list[int]:
    """Category ids with objects or detections that count in an image.

    Without the field ``neg_category_ids`` the image is taken as annotated for all classes; with an
    empty list, only the classes that have objects are scored.
    """
    negative = image.get("neg_category_ids")
    extra = found if negative is None else set(negative) & set(found)
    return sorted({*objects, *extra})


def pairwise_iou(
    found: Records, objects: Records, image: Mapping[str, Any], task: str, crowd: bool = False
) -> np.ndarray:
    """IoU of boxes or masks; with ``crowd``, intersection over the detection's area: [D, G]."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    flags = [int(crowd)] * len(objects)
    if task == "bbox":
        pair = [d["bbox"] for d in found], [g["bbox"] for g in objects]
    else:
        pair = (
            [to_rle(d["segmentation"], image) for d in found],
            [to_rle(g["segmentation"], image) for g in objects],
        )
    return np.asarray(mask_utils.iou(*pair, flags))


def _grouped(records: Iterable[Mapping[str, Any]], field: str) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for record in records:
        groups[record[field]].append(record)
    return groups


def _areas(found: Records, task: str) -> np.ndarray:
    """Box or mask areas in square pixels: [D]."""
    if task == "bbox":
        return np.array([d["bbox"][2] * d["bbox"][3] for d in found], dtype=float)
    return np.array([mask_utils.area(d["segmentation"]) for d in found], dtype=float)


def _evaluate(
    objects: Records, found: Records, image: Mapping[str, Any], task: str, partly: bool
) -> ClassInImage:
    areas_D = _areas(found, task)
    if areas_D.size and areas_D.min() <= 0:  # nothing was detected there; lvis drops these too
        found = [record for record, area in zip(found, areas_D, strict=True) if area > 0]
        areas_D = areas_D[areas_D > 0]
    ignored_AG = outside_areas(np.array([g["area"] for g in objects], dtype=float))
    ignored_AG = ignored_AG | np.array([g["ignore"] for g in objects], dtype=bool)
    match_TAD = match_by_score(
        pairwise_iou(found, objects, image, task), ignored_AG, IOU_THRESHOLDS_T
    )
    matched_TAD = match_TAD >= 0
    if objects:
        counts_AG = ~ignored_AG
        on_object_TAD = counts_AG[np.arange(len(counts_AG))[None, :, None], match_TAD]
        hit_TAD = matched_TAD & on_object_TAD
    else:
        hit_TAD = matched_TAD
    forgiven_AD = outside_areas(areas_D) | partly
    return ClassInImage(
        scores_D=np.array([d["score"] for d in found], dtype=float),
        hit_TAD=hit_TAD,
        miss_TAD=~matched_TAD & ~forgiven_AD,
        num_objects_A=(~ignored_AG).sum(axis=1),
    )


def _precision(outcomes: Sequence[ClassInImage]) -> np.ndarray:
    """Interpolated precision of one class over all images: [T, R, A]."""
    num_points, num_areas = len(RECALL_POINTS_R), len(outside_areas(np.zeros(0)))
    precision_TRA = np.full((len(IOU_THRESHOLDS_T), num_points, num_areas), -1.0)
    if not outcomes:
        return precision_TRA
    num_objects_A = np.sum([outcome.num_objects_A for outcome in outcomes], axis=0)
    order_N = np.argsort(-np.concatenate([o.scores_D for o in outcomes]), kind="stable")
    hits_TAN = np.concatenate([o.hit_TAD for o in outcomes], axis=2)[..., order_N].cumsum(axis=2)
    misses_TAN = np.concatenate([o.miss_TAD for o in outcomes], axis=2)[..., order_N].cumsum(axis=2)
    raw_TAN = hits_TAN / (hits_TAN + misses_TAN + np.spacing(1))
    # precision at a recall is the best at that recall or beyond; 0 where it is never reached
    best_TAN = np.maximum.accumulate(raw_TAN[..., ::-1], axis=2)[..., ::-1]
    best_TAN = np.concatenate([best_TAN, np.zeros((*best_TAN.shape[:2], 1))], axis=2)
    for a in np.flatnonzero(num_objects_A):
        for t, hits_N in enumerate(hits_TAN[:, a]):
            reached_R = np.searchsorted(hits_N / num_objects_A[a], RECALL_POINTS_R, side="left")
            precision_TRA[t, :, a] = best_TAN[t, a, reached_R]
    return precision_TRA
