"""LVIS average precision (federated annotations), with AP of class groups.

Our own computation in numpy: the ``lvis`` package calls names that numpy removed, and handles only
files with every LVIS field. The tests hold it against that package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ext_common.evaluation.ap_summary import summarise_precision
from ext_common.evaluation.base import DetectionEvaluator
from ext_common.evaluation.federated import federated_precision
from ext_common.evaluation.ground_truth import GroundTruth


class LvisEvaluator(DetectionEvaluator):
    """AP as LVIS defines it; arguments and result keys of detectron2's ``LVISEvaluator``.

    Works for any dataset in the LVIS layout, whatever its classes. Fields that a file does not
    have: an image without ``neg_category_ids`` counts as annotated for all classes, one without
    ``not_exhaustive_category_ids`` as exhaustively annotated, a category without ``frequency``
    belongs to none of APr, APc and APf.

    Args:
        dataset_name: registered dataset.
        tasks: "bbox" and / or "segm"; default: what the model predicts.
        distributed: gather the predictions of all processes on the main one.
        output_dir: folder for ``lvis_instances_results.json``; None = not written.
        max_dets_per_image: detections counted per image over all classes (LVIS: 300).
    """

    kind = "lvis"

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
    ) -> None:
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets = max_dets_per_image

    def score(
        self, truth: GroundTruth, detections: Sequence[Mapping[str, Any]], task: str
    ) -> dict[str, float]:
        """See :meth:`DetectionEvaluator.score`."""
        precision_TRKA = federated_precision(truth, detections, task, max_dets=self._max_dets)
        return summarise_precision(precision_TRKA, truth, with_frequency=True)
