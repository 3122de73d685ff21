"""Evaluation that only this detector's experiments need; registers "coco_ovd"."""

from __future__ import annotations

from typing import Any

from ext_common.evaluation.build import register_evaluator


@register_evaluator("coco_ovd")
def _build_coco_ovd(cfg: Any, dataset_name: str, output_folder: str) -> Any:
    from regionclip_ext.evaluation.ovd_coco import OvdCocoEvaluator

    return OvdCocoEvaluator(dataset_name, output_dir=output_folder)
