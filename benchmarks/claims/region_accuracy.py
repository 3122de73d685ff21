"""How many ground-truth boxes get their own class as the best one, from an evaluation's results.

The zero-shot evaluation on ground-truth boxes writes a score for every box and class; this reads
them back and takes the best of each box.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError

Place = tuple[Any, ...]
"""Image id and rounded XYWH: tells the boxes of a test set apart."""


def top1(
    results: Path, annotations: Path, groups: Mapping[str, Collection[str]]
) -> dict[str, float]:
    """Percent of boxes whose best class is the true one: of all, and of every group.

    Args:
        results: COCO results with the ground-truth boxes.
        annotations: the test set.
        groups: class names by group; boxes are counted by their true class.

    Returns:
        "all" and the groups' names with their percent.

    Raises:
        DatasetError: a box without scores.
    """
    best: dict[Place, tuple[float, int]] = {}
    for one in json.loads(results.read_text(encoding="utf-8")):
        found = (one["score"], one["category_id"])
        place = _place(one)
        best[place] = max(best.get(place, found), found)
    truth = read_json(annotations)
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    right: dict[str, list[bool]] = {"all": [], **{group: [] for group in groups}}
    for one in truth["annotations"]:
        place, true = _place(one), one["category_id"]
        if place not in best:
            raise DatasetError(
                f"no scores for the box of annotation {one['id']}", where=str(results)
            )
        for group, members in {"all": names.values(), **groups}.items():
            if names[true] in members:
                right[group].append(best[place][1] == true)
    return {group: 100.0 * sum(hits) / max(len(hits), 1) for group, hits in right.items()}


def _place(one: Mapping[str, Any]) -> Place:
    # resizing there and back moves a corner by less than a hundredth of a pixel
    return (one["image_id"], *(round(value) for value in one["bbox"]))
