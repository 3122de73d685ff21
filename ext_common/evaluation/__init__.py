"""Evaluators of box and mask detection, by the ``evaluator_type`` of a dataset's metadata.

Importing this package registers "coco", "lvis" and "proposal_recall"; the evaluators themselves
(and detectron2) are imported when one is built.
"""

from __future__ import annotations

from typing import Any

from ext_common.evaluation.build import build_evaluator, register_evaluator

__all__ = ["build_evaluator", "register_evaluator"]


@register_evaluator("coco")
def _build_coco(cfg: Any, dataset_name: str, output_folder: str) -> Any:
    from ext_common.evaluation.coco import CocoEvaluator

    return CocoEvaluator(dataset_name, output_dir=output_folder)


@register_evaluator("lvis")
def _build_lvis(cfg: Any, dataset_name: str, output_folder: str) -> Any:
    from ext_common.evaluation.lvis import LvisEvaluator

    return LvisEvaluator(dataset_name, output_dir=output_folder)


@register_evaluator("proposal_recall")
def _build_proposal_recall(cfg: Any, dataset_name: str, output_folder: str) -> Any:
    from ext_common.evaluation.proposal_recall import ProposalRecallEvaluator

    return ProposalRecallEvaluator(dataset_name)
