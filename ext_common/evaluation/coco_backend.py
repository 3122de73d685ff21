"""Which COCOeval runs: faster-coco-eval where it is installed, else pycocotools."""

from __future__ import annotations

from typing import Any


def coco_eval_class() -> type[Any]:
    """A class with pycocotools' ``COCOeval`` interface."""
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        from pycocotools.cocoeval import COCOeval

        return COCOeval
    return COCOeval_faster
