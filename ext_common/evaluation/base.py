"""What the box and mask evaluators share: collecting, gathering, class ids, files, logging."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from ext_common.data.json_files import write_json_atomic
from ext_common.errors import DatasetError
from ext_common.evaluation.ground_truth import GroundTruth, load_ground_truth
from ext_common.evaluation.tables import format_results

TaskResults = OrderedDict[str, dict[str, float]]
"""``{"bbox": {"AP": 12.3, ...}, "segm": {...}}``; numbers in percent."""

_log = logging.getLogger(__name__)


class DetectionEvaluator(DatasetEvaluator):
    """A detectron2 evaluator of predicted ``Instances``; subclasses score one task.

    Args:
        dataset_name: registered dataset.
        tasks: "bbox" and / or "segm"; default: boxes, and masks where the model predicts them and
            the dataset has them.
        distributed: gather the predictions of all processes on the main one. The others return {}.
        output_dir: where the predictions are written (``<kind>_instances_results.json``); None =
            nowhere.

    Raises:
        DatasetError: see :func:`~ext_common.evaluation.ground_truth.load_ground_truth`; or "segm"
            is asked for and the dataset has no segmentations.
    """

    kind = ""

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        self.truth = load_ground_truth(dataset_name)
        if "segm" in (tasks or ()) and not self.truth.has_masks:
            raise DatasetError(
                "masks cannot be scored: annotations without a segmentation",
                where=f"dataset {dataset_name!r}",
                fix='evaluate the task "bbox" only',
            )
        self._tasks = tuple(tasks) if tasks is not None else None
        self._distributed = distributed
        self._output_dir = output_dir
        self._predictions: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Keep the predictions of a batch.

        Args:
            inputs: dataset records with ``image_id``.
            outputs: the model's, with ``instances`` (``pred_boxes``, ``scores``, ``pred_classes``
                and perhaps ``pred_masks``) in the resolution of the original image.

        Raises:
            DatasetError: an image or a class index that the dataset does not have.
        """
        for record, output in zip(inputs, outputs, strict=True):
            image_id, instances = record["image_id"], output["instances"].to("cpu")
            if image_id not in self.truth.images:
                raise DatasetError(
                    f"predictions for unknown image {image_id!r}",
                    where=f"dataset {self.truth.dataset_name!r}",
                    fix="evaluate on the dataset that the images come from",
                )
            detections = instances_to_coco_json(instances, image_id)
            self._to_dataset_ids(detections)
            self._predictions.append(
                {
                    "image_id": image_id,
                    "detections": detections,
                    "has_masks": instances.has("pred_masks"),
                }
            )

    def evaluate(self, img_ids: Collection[Any] | None = None) -> TaskResults:
        """Score everything that was processed since :meth:`reset`.

        Args:
            img_ids: score these images only.

        Returns:
            Metrics in percent by task; empty on processes other than the main one, without
            predictions, and for datasets without annotations (test sets).
        """
        predictions = gather_predictions(self._predictions, self._distributed)
        if not predictions:
            if comm.is_main_process():
                _log.warning("no predictions for dataset %r", self.truth.dataset_name)
            return OrderedDict()
        detections = [found for record in predictions for found in record["detections"]]
        self._write(detections)
        if not self.truth.annotations:
            _log.info("dataset %r has no annotations to compare with", self.truth.dataset_name)
            return OrderedDict()
        truth = self.truth
        if img_ids is not None:
            truth = truth.restricted(img_ids)
            detections = [found for found in detections if found["image_id"] in truth.images]
        results: TaskResults = OrderedDict()
        for task in self._tasks or self._tasks_of(predictions):
            results[task] = self.score(truth, detections, task)
        _log.info("%s\n%s", self.truth.dataset_name, format_results(results))
        return results

    def score(
        self, truth: GroundTruth, detections: Sequence[Mapping[str, Any]], task: str
    ) -> dict[str, float]:
        """Metrics of one task in percent.

        Args:
            truth: annotations of the images to score.
            detections: COCO result records with the dataset's category ids.
            task: "bbox" or "segm".
        """
        raise NotImplementedError

    def _tasks_of(self, predictions: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        if not any(record["has_masks"] for record in predictions):
            return ("bbox",)
        if not self.truth.has_masks:
            _log.warning(
                "masks are not scored: dataset %r lacks segmentations", self.truth.dataset_name
            )
            return ("bbox",)
        return ("bbox", "segm")

    def _to_dataset_ids(self, detections: Sequence[dict[str, Any]]) -> None:
        class_ids = self.truth.class_ids
        for found in detections:
            if not 0 <= found["category_id"] < len(class_ids):
                raise DatasetError(
                    f"predicted class {found['category_id']}, but there are {len(class_ids)} classes",
                    where=f"dataset {self.truth.dataset_name!r}",
                    fix="evaluate with the dataset's own vocabulary (MODEL.VOCABULARY dataset:NAME)",
                )
            found["category_id"] = class_ids[found["category_id"]]

    def _write(self, detections: Sequence[Mapping[str, Any]]) -> None:
        if not self._output_dir:
            return
        path = Path(self._output_dir) / f"{self.kind}_instances_results.json"
        write_json_atomic(path, list(detections))
        _log.info("%d predictions written to %s", len(detections), path)


def gather_predictions(
    own: Sequence[dict[str, Any]], distributed: bool
) -> list[dict[str, Any]] | None:
    """All processes' records on the main one, each image once; None on the others."""
    records = list(own)
    if distributed:
        comm.synchronize()
        gathered = comm.gather(records, dst=0)
        if not comm.is_main_process():
            return None
        records = list(itertools.chain.from_iterable(gathered))
    # a sampler that pads the last batch shows some images twice
    unique = {record["image_id"]: record for record in reversed(records)}
    if len(unique) < len(records):
        _log.warning("%d images were predicted more than once", len(records) - len(unique))
        return list(reversed(unique.values()))
    return records
