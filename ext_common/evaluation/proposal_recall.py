"""Recall of class-agnostic boxes: do the proposals cover the objects, also of novel classes?

Average recall as COCO computes it without categories (``useCats = 0``), from one greedy matching
per image; recall of a class group counts the group's objects in that matching.

Shapes: T IoU thresholds, A area ranges, G objects and D boxes of one image.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator

from ext_common.evaluation.base import TaskResults, gather_predictions
from ext_common.evaluation.federated import by_image, pairwise_iou
from ext_common.evaluation.ground_truth import load_ground_truth
from ext_common.evaluation.matching import IOU_THRESHOLDS_T, match_by_score, outside_areas
from ext_common.evaluation.tables import format_results

NEVER = np.iinfo(np.int64).max

_log = logging.getLogger(__name__)


class ProposalRecallEvaluator(DatasetEvaluator):
    """Average recall (AR) of a model's proposals, or of its detections with classes ignored.

    Results (task "box_proposals", percent), for every limit k: ``AR@k`` (IoU .50:.95),
    ``ARs@k``, ``ARm@k``, ``ARl@k``, ``AR50@k`` (IoU .5), and ``AR@k-group-<name>``,
    ``AR50@k-group-<name>`` for the metadata's class groups. NaN without objects. Crowd annotations
    are left out.

    Args:
        dataset_name: registered dataset.
        limits: numbers of boxes per image.
        distributed: gather the predictions of all processes on the main one.
    """

    def __init__(
        self, dataset_name: str, limits: Sequence[int] = (100, 1000), distributed: bool = True
    ) -> None:
        self.truth = load_ground_truth(dataset_name)
        self._limits = tuple(sorted(limits))
        self._distributed = distributed
        self._predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Keep the boxes of a batch.

        Args:
            inputs: dataset records with ``image_id``.
            outputs: with ``proposals`` (``proposal_boxes``, ``objectness_logits``) or else
                ``instances`` (``pred_boxes``, ``scores``), in the original image's resolution.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "proposals" in output:
                found = output["proposals"].to("cpu")
                boxes_D4, scores_D = found.proposal_boxes.tensor, found.objectness_logits
            else:
                found = output["instances"].to("cpu")
                boxes_D4, scores_D = found.pred_boxes.tensor, found.scores
            order_D = scores_D.argsort(descending=True, stable=True)[: self._limits[-1]]
            self._predictions.append(
                {"image_id": record["image_id"], "boxes_D4": boxes_D4[order_D].double().numpy()}
            )

    def evaluate(self) -> TaskResults:
        """Recall of everything processed since :meth:`reset`; empty on other processes."""
        predictions = gather_predictions(self._predictions, self._distributed)
        if not predictions:
            return OrderedDict()
        objects_of = by_image(ann for ann in self.truth.annotations if not ann["iscrowd"])
        boxes_of = {record["image_id"]: record["boxes_D4"] for record in predictions}
        ranks, areas, classes = [], [], []
        for image_id in self.truth.images:
            objects = objects_of.get(image_id, [])
            boxes_D4 = boxes_of.get(image_id, np.zeros((0, 4)))
            ranks.append(match_ranks(boxes_D4, objects))
            areas += [found["area"] for found in objects]
            classes += [found["category_id"] for found in objects]
        metrics = self._metrics(
            np.concatenate(ranks, axis=2), outside_areas(np.array(areas)), np.array(classes)
        )
        results: TaskResults = OrderedDict({"box_proposals": metrics})
        _log.info("%s\n%s", self.truth.dataset_name, format_results(results))
        return results

    def _metrics(
        self, rank_TAG: np.ndarray, outside_AG: np.ndarray, category_G: np.ndarray
    ) -> dict[str, float]:
        metrics = {}
        for limit in self._limits:
            reached_TAG = rank_TAG < limit
            for a, letter in enumerate(("", "s", "m", "l")):
                metrics[f"AR{letter}@{limit}"] = _percent(reached_TAG[:, a, ~outside_AG[a]])
            inside_G = ~outside_AG[0]
            metrics[f"AR50@{limit}"] = _percent(reached_TAG[:1, 0, inside_G])
            for name, indices in self.truth.groups.items():
                member_G = np.isin(category_G, [self.truth.class_ids[i] for i in indices])
                member_G &= inside_G
                metrics[f"AR@{limit}-group-{name}"] = _percent(reached_TAG[:, 0, member_G])
                metrics[f"AR50@{limit}-group-{name}"] = _percent(reached_TAG[:1, 0, member_G])
        return metrics


def match_ranks(boxes_D4: np.ndarray, objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Rank (0 = highest score) of the box that an object is matched to, NEVER where none is.

    Because matching goes in order of score, an object is recalled with k boxes per image exactly
    if its rank is below k: one matching serves every k.

    Args:
        boxes_D4: XYXY pixels, descending score.
        objects: annotations with ``bbox`` (XYWH) and ``area``.

    Returns:
        int64 [T, A, G].
    """
    sizes_D4 = np.concatenate([boxes_D4[:, :2], boxes_D4[:, 2:] - boxes_D4[:, :2]], axis=1)
    found = [{"bbox": box} for box in sizes_D4.tolist()]
    ignored_AG = outside_areas(np.array([obj["area"] for obj in objects], dtype=float))
    match_TAD = match_by_score(
        pairwise_iou(found, objects, {}, "bbox"), ignored_AG, IOU_THRESHOLDS_T
    )
    rank_TAG = np.full((*match_TAD.shape[:2], len(objects)), NEVER, dtype=np.int64)
    t, a, d = np.nonzero(match_TAD >= 0)
    rank_TAG[t, a, match_TAD[t, a, d]] = d
    return rank_TAG


def _percent(reached: np.ndarray) -> float:
    return float(reached.mean() * 100) if reached.size else float("nan")
