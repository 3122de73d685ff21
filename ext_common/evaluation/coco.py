"""COCO average precision, with AP of class groups."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from ext_common.evaluation.ap_summary import summarise_precision
from ext_common.evaluation.base import DetectionEvaluator
from ext_common.evaluation.coco_backend import coco_eval_class
from ext_common.evaluation.ground_truth import GroundTruth
from ext_common.evaluation.masks import to_rle
from ext_common.evaluation.matching import AREA_RANGES_A2, IOU_THRESHOLDS_T


class CocoEvaluator(DetectionEvaluator):
    """AP as COCO defines it; arguments and result keys of detectron2's ``COCOEvaluator``.

    Results per task: see :func:`~ext_common.evaluation.ap_summary.summarise_precision`. Class
    groups come from the metadata's ``class_groups``.

    Args:
        dataset_name: registered dataset.
        tasks: "bbox" and / or "segm"; default: what the model predicts.
        distributed: gather the predictions of all processes on the main one.
        output_dir: folder for ``coco_instances_results.json``; None = not written.
        max_dets_per_image: detections counted per image **and class** (COCO: 100).
        eval_class: a class with the interface of pycocotools' ``COCOeval``; default
            :func:`~ext_common.evaluation.coco_backend.coco_eval_class`.
    """

    kind = "coco"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 100,
        eval_class: type[Any] | None = None,
    ) -> None:
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets = max_dets_per_image
        self._eval_class = eval_class or coco_eval_class()

    def score(
        self, truth: GroundTruth, detections: Sequence[Mapping[str, Any]], task: str
    ) -> dict[str, float]:
        """See :meth:`DetectionEvaluator.score`."""
        precision_TRKA = coco_precision(
            truth, detections, task, max_dets=self._max_dets, eval_class=self._eval_class
        )
        return summarise_precision(precision_TRKA, truth)


def coco_precision(
    truth: GroundTruth,
    detections: Sequence[Mapping[str, Any]],
    task: str,
    *,
    max_dets: int,
    eval_class: type[Any],
) -> np.ndarray:
    """Precision at IoU thresholds, recall points, classes (contiguous order) and area ranges.

    Returns:
        [T, R, K, A] in [0, 1], -1 where a class has no ground truth in the area range.
    """
    records = [_annotation(ann, task, truth.images[ann["image_id"]]) for ann in truth.annotations]
    found = [_detection(det, number, task) for number, det in enumerate(detections, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation = eval_class(_index(truth, records), _index(truth, found), task)
        params = evaluation.params
        params.imgIds = list(truth.images)
        params.catIds = sorted(truth.class_ids)
        params.maxDets = [max_dets]
        params.areaRng = AREA_RANGES_A2.tolist()
        params.iouThrs = IOU_THRESHOLDS_T
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRKA = np.asarray(evaluation.eval["precision"])[..., -1]
    return precision_TRKA[:, :, np.searchsorted(params.catIds, truth.class_ids)]


def _index(truth: GroundTruth, annotations: list[dict[str, Any]]) -> COCO:
    """pycocotools' index over these annotations (its own loaders refuse an empty list)."""
    index = COCO()
    index.dataset = {
        "images": list(truth.images.values()),
        "categories": [{"id": key} for key in truth.class_ids],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def _annotation(
    annotation: Mapping[str, Any], task: str, image: Mapping[str, Any]
) -> dict[str, Any]:
    """A copy that COCOeval may write into."""
    record = dict(annotation)
    if task == "segm":
        record["segmentation"] = to_rle(record["segmentation"], image)
    return record


def _detection(detection: Mapping[str, Any], number: int, task: str) -> dict[str, Any]:
    """A result record with the area of what is compared: the box or the mask."""
    record = dict(detection) | {"id": number, "iscrowd": 0}
    if task == "segm":
        record["area"] = float(mask_utils.area(record["segmentation"]))
    else:
        record.pop("segmentation", None)
        record["area"] = record["bbox"][2] * record["bbox"][3]
    return record
