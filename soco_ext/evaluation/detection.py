"""detectron2's scores for PASCAL VOC and Cityscapes, for the fine-tuning configurations."""

from __future__ import annotations

import importlib.util
from typing import Any

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.evaluation.build import register_evaluator


@register_evaluator("pascal_voc")
def build_voc_evaluator(cfg: CfgNode, name: str, folder: str) -> Any:
    """AP, AP50 and AP75 as the VOC benchmark has them."""
    from detectron2.evaluation import PascalVOCDetectionEvaluator

    return PascalVOCDetectionEvaluator(name)


@register_evaluator("cityscapes_instance")
def build_cityscapes_evaluator(cfg: CfgNode, name: str, folder: str) -> Any:
    """Instance AP by the official tool.

    Raises:
        ConfigError: the package ``cityscapesscripts`` is missing.
    """
    if importlib.util.find_spec("cityscapesscripts") is None:
        raise ConfigError(
            "Cityscapes is read and scored by cityscapesscripts, which is not installed",
            where=f"dataset {name!r}",
            fix="pip install cityscapesscripts",
        )
    from detectron2.evaluation import CityscapesInstanceEvaluator

    return CityscapesInstanceEvaluator(name)
