"""From a dataset's name to its evaluator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError
from ext_common.registries import EVALUATOR_REGISTRY

_RECALL = "proposal_recall"

EvaluatorBuilder = Callable[[Any, str, str], Any]
"""``build(cfg, dataset_name, output_folder) -> detectron2 DatasetEvaluator``."""


def register_evaluator(evaluator_type: str) -> Callable[[EvaluatorBuilder], EvaluatorBuilder]:
    """Decorator: the function builds evaluators of datasets with this ``evaluator_type``."""

    def register(build: EvaluatorBuilder) -> EvaluatorBuilder:
        EVALUATOR_REGISTRY._do_register(evaluator_type, build)
        return build

    return register


def build_evaluator(cfg: Any, dataset_name: str, folder: str | Path | None = None) -> Any:
    """The evaluator that the dataset's metadata asks for with ``evaluator_type``.

    With ``EVAL_PROPOSAL_AR`` (Detic's key) the recall of the proposals is scored as well.

    Args:
        cfg: configuration; ``OUTPUT_DIR`` and whatever the evaluator's builder reads.
        dataset_name: a registered dataset.
        folder: where predictions are written; default ``OUTPUT_DIR/inference_<dataset_name>``.

    Raises:
        DatasetError: unknown dataset, no ``evaluator_type``, or one that nothing is registered for.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import DatasetEvaluators

    if dataset_name not in DatasetCatalog.list():
        raise DatasetError(
            f"unknown dataset {dataset_name!r}",
            where="DATASETS.TEST",
            fix="list it in a file of DATASETS.REGISTRY or register it with detectron2",
        )
    known = sorted(name for name, _ in EVALUATOR_REGISTRY)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in known:
        said = f"evaluator_type {kind!r} has no evaluator" if kind else "no evaluator_type is set"
        raise DatasetError(
            said,
            where=f"metadata of dataset {dataset_name!r}",
            fix=f"known types: {', '.join(known)}",
        )
    if folder is None:
        folder = Path(cfg.OUTPUT_DIR) / f"inference_{dataset_name}"
    evaluator = EVALUATOR_REGISTRY.get(kind)(cfg, dataset_name, str(folder))
    if not cfg.get("EVAL_PROPOSAL_AR", False) or kind == _RECALL:
        return evaluator
    recall = EVALUATOR_REGISTRY.get(_RECALL)(cfg, dataset_name, str(folder))
    return DatasetEvaluators([evaluator, recall])
