"""Average precision as the OpenImages challenge defines it (spec detic 6.8), in plain numpy.

The authors' code sorts detections by score and then applies the same permutation to the sorted
overlaps again. With detections in descending order, as detectors give them, that changes nothing;
``reproduce_order_bug`` repeats it for comparisons on unsorted lists.

Shapes: D detections, G objects and B group boxes of one class in one image, N entries of one class
in all images, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ext_common.evaluation.federated import (
    Records,
    by_class,
    by_image,
    pairwise_iou,
    top_scores,
)
from ext_common.evaluation.ground_truth import GroundTruth

IOU_THRESHOLD = 0.5
MAX_PER_IMAGE = 300
"""Detections of an image that count. The rule's other limit, 1000 per class, is never reached."""


def oid_average_precision(
    truth: GroundTruth,
    detections: Records,
    task: str = "bbox",
    *,
    ancestors: Mapping[int, Sequence[int]] | None = None,
    reproduce_order_bug: bool = False,
) -> np.ndarray:
    """AP50 of every class.

    Of an image, the classes in ``pos_category_ids`` (or annotated) and ``neg_category_ids`` are
    scored; all classes where it has neither field. Annotations with ``iscrowd`` are group-of boxes.

    Args:
        truth: annotations, already expanded to all ancestors of a class.
        detections: COCO result records with the dataset's category ids; the 300 best of an image
            count.
        task: "bbox" or "segm".
        ancestors: category ids above each category id; detections count for these as well.
        reproduce_order_bug: see the module's description.

    Returns:
        [K] in [0, 1] in contiguous order, NaN for a class without ground truth.
    """
    objects_of, found_of = by_image(truth.annotations), by_image(detections)
    entries: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    num_objects: dict[int, int] = defaultdict(int)
    for image_id, image in truth.images.items():
        found: Records = found_of.get(image_id, ())
        if len(found) > MAX_PER_IMAGE:
            found = top_scores(found, MAX_PER_IMAGE)
        objects, candidates = (
            by_class(objects_of.get(image_id, ())),
            by_class(expand(found, ancestors)),
        )
        for key in scored_classes(image, objects, candidates):
            entries[key].append(
                match_image(
                    objects.get(key, ()),
                    candidates.get(key, ()),
                    image,
                    task=task,
                    reproduce_order_bug=reproduce_order_bug,
                )
            )
            num_objects[key] += len(objects.get(key, ()))
    return np.array(
        [envelope_area(entries.get(key, ()), num_objects[key]) for key in truth.class_ids]
    )


def expand(detections: Records, ancestors: Mapping[int, Sequence[int]] | None) -> Records:
    """The detections, each repeated for every class above its own."""
    if not ancestors:
        return detections
    return [
        {**found, "category_id": key}
        for found in detections
        for key in (found["category_id"], *ancestors.get(found["category_id"], ()))
    ]


def scored_classes(
    image: Mapping[str, Any], objects: Mapping[int, Records], found: Mapping[int, Records]
) -> set[int]:
    """Category ids with objects or detections whose presence or absence was verified."""
    lists = [image[key] for key in ("pos_category_ids", "neg_category_ids") if key in image]
    if not lists:
        return {*objects, *found}
    return {*objects, *(set(found) & set().union(*lists))}


def match_image(
    objects: Records,
    found: Records,
    image: Mapping[str, Any],
    *,
    task: str = "bbox",
    reproduce_order_bug: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Scored entries of one class in one image.

    In order of score, a detection belongs to the object of largest IoU and is right if it is the
    first to reach 0.5 there. What is left and lies to at least half in a group box is absorbed:
    together one right entry per group box, with the best score.

    Args:
        objects: annotations; ``iscrowd`` marks group boxes.
        found: detections in any order.
        image: the image's record (height and width are read for masks).
        task: "bbox" or "segm".
        reproduce_order_bug: see the module's description.

    Returns:
        Scores and whether each entry is right: float [N], bool [N].
    """
    scores_D = np.array([record["score"] for record in found], dtype=float)
    order_D = np.argsort(-scores_D, kind="stable")
    scores_D, right_D = scores_D[order_D], np.zeros(len(found), dtype=bool)
    if reproduce_order_bug:
        order_D = order_D[order_D]
    single = [record for record in objects if not record["iscrowd"]]
    if single and found:
        iou_DG = pairwise_iou(found, single, image, task)[order_D]
        reached_D = np.flatnonzero(iou_DG.max(axis=1) >= IOU_THRESHOLD)
        _, first = np.unique(iou_DG[reached_D].argmax(axis=1), return_index=True)
        right_D[reached_D[first]] = True
    group = [record for record in objects if record["iscrowd"]]
    if not (group and found):
        return scores_D, right_D
    share_DB = pairwise_iou(found, group, image, task, crowd=True)[order_D]
    absorbed_D = ~right_D & (share_DB.max(axis=1) >= IOU_THRESHOLD)
    _, first = np.unique(share_DB[absorbed_D].argmax(axis=1), return_index=True)
    group_scores = scores_D[absorbed_D][first]
    return (
        np.concatenate([scores_D[~absorbed_D], group_scores]),
        np.concatenate([right_D[~absorbed_D], np.ones(len(group_scores), dtype=bool)]),
    )


def envelope_area(entries: Sequence[tuple[np.ndarray, np.ndarray]], num_objects: int) -> float:
    """Area under the monotone precision envelope (VOC 2010), NaN without objects.

    Args:
        entries: scores and correctness per image.
        num_objects: objects of the class in all scored images, group boxes included.
    """
    if num_objects == 0:
        return float("nan")
    scores_N = np.concatenate([scores for scores, _ in entries])
    right_N = np.concatenate([right for _, right in entries])
    right_N = right_N[np.argsort(-scores_N, kind="stable")].astype(float)
    hits_N = right_N.cumsum()
    precision_N = hits_N / np.arange(1, len(hits_N) + 1)
    best_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    # recall grows by one object at every right entry and nowhere else
    return float((best_N * right_N).sum() / num_objects)
