"""OpenImages evaluation of a detector's predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from detic_ext.evaluation.oid_hierarchy import HIERARCHY_FILE, ancestors_by_id, read_hierarchy
from detic_ext.evaluation.oid_metric import oid_average_precision
from ext_common.evaluation.ap_summary import group_means, mean_percent, per_class
from ext_common.evaluation.base import DetectionEvaluator
from ext_common.evaluation.ground_truth import GroundTruth

_log = logging.getLogger(__name__)


class OidEvaluator(DetectionEvaluator):
    """AP50 of OpenImages (spec detic 6.8).

    Results in percent: for boxes ``AP50`` and, where the class hierarchy is known, ``AP50_expand``
    (detections count for the classes above as well; the published number); for masks
    ``AP50_segm``. With ``AP50-group-<name>`` for class groups and ``AP50-<class>``, both from the
    expanded detections where there are any.

    The hierarchy is read from the metadata's ``hierarchy_file``, else from
    ``challenge-2019-label500-hierarchy.json`` beside the annotations; the categories then need
    ``freebase_id``.

    Args:
        dataset_name: registered dataset.
        tasks: "bbox" or "segm"; default: masks instead of boxes where the model predicts them and
            the dataset has them.
        distributed: gather the predictions of all processes on the main one.
        output_dir: folder for ``oid_instances_results.json``; None = not written.

    Raises:
        DatasetError: bad annotations, or a hierarchy file that cannot be read.
    """

    kind = "oid"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._ancestors = _find_ancestors(self.truth)

    def score(
        self, truth: GroundTruth, detections: Sequence[Mapping[str, Any]], task: str
    ) -> dict[str, float]:
        """See :meth:`DetectionEvaluator.score`."""
        ap_K = oid_average_precision(truth, detections, task)
        results = {"AP50" if task == "bbox" else "AP50_segm": mean_percent(ap_K)}
        if task == "bbox" and self._ancestors:
            ap_K = oid_average_precision(truth, detections, task, ancestors=self._ancestors)
            results["AP50_expand"] = mean_percent(ap_K)
        results |= group_means(ap_K, truth.groups, "AP50")
        return results | per_class(ap_K, truth.class_names, "AP50")

    def _tasks_of(self, predictions: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        return super()._tasks_of(predictions)[-1:]


def _find_ancestors(truth: GroundTruth) -> dict[int, tuple[int, ...]]:
    """Category ids above each category id; empty without a hierarchy."""
    metadata = MetadataCatalog.get(truth.dataset_name)
    path = metadata.get("hierarchy_file")
    if path is None:
        beside = Path(metadata.get("json_file") or "").parent / HIERARCHY_FILE
        if not beside.is_file():
            _log.warning("no %s: AP50_expand is left out", beside)
            return {}
        path = beside
    labels = {
        record["freebase_id"]: key
        for key, record in truth.categories.items()
        if "freebase_id" in record
    }
    return ancestors_by_id(read_hierarchy(path), labels)
