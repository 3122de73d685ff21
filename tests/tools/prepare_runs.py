"""Running tools/prepare_data.py on small annotation files, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from tests.ext_common.annotation_files import box, write
from tools.prepare_data import main

TOOL = Path(__file__).resolve().parents[2] / "tools" / "prepare_data.py"
LVIS_ID = {category["synset"]: category["id"] for category in lvis_categories()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def lvis_file(path: Path) -> Path:
    """One image; a dog (frequent), a cat (frequent) and a rare thing."""
    rare = next(c["id"] for c in lvis_categories() if c["frequency"] == "r")
    labels = [LVIS_ID["dog.n.01"], LVIS_ID["cat.n.01"], rare]
    value = {
        "images": [
            {"id": 7, "height": 40, "width": 40, "file_name": "7.jpg", "neg_category_ids": []}
        ],
        "annotations": [box(n, 7, key, [n, n, 10, 10]) for n, key in enumerate(labels, start=1)],
        "categories": lvis_categories(),
    }
    return write(path, value)


def coco_file(path: Path, labels: list[tuple[int, int]]) -> Path:
    value = {
        "images": [
            {"id": n, "height": 40, "width": 40, "file_name": f"{n}.jpg"} for n in range(1, 9)
        ],
        "annotations": [
            {**box(n, image, key, [20, 20, 9, 9]), "iscrowd": 0}
            for n, (image, key) in enumerate(labels, start=1)
        ],
        "categories": [{**c, "supercategory": "thing"} for c in coco_categories()],
    }
    return write(path, value)
