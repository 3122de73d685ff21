"""Evaluation that only this detector's experiments need; registers "oid" (OpenImages)."""

from __future__ import annotations

from typing import Any

from ext_common.evaluation.build import register_evaluator


@register_evaluator("oid")
def _build_oid(cfg: Any, dataset_name: str, output_folder: str) -> Any:
    from detic_ext.evaluation.oid import OidEvaluator

    return OidEvaluator(dataset_name, output_dir=output_folder)
