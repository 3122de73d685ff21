"""Class lists that detectron2 brings along, as the ``categories`` of an annotation file."""

from __future__ import annotations

from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

Category = dict[str, Any]


def lvis_categories() -> list[Category]:
    """The 1203 classes of LVIS v1 by id: id, name, synset, synonyms, def, frequency."""
    return sorted((dict(c) for c in LVIS_CATEGORIES), key=lambda category: int(category["id"]))


def coco_categories() -> list[Category]:
    """The 80 classes of COCO by id: id, name."""
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    return [{"id": c["id"], "name": c["name"]} for c in sorted(things, key=lambda c: int(c["id"]))]
