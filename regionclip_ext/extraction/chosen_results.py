"""Which predictions of a results file are worth drawing (specification 6, visualise json).

Legend: R predictions of an image.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError
from ext_common.images import printable

Prediction = dict[str, Any]

_FIELDS = {"image_id", "category_id", "bbox", "score"}


def read_results(path: str | Path) -> dict[Any, list[Prediction]]:
    """Predictions by image id, in file order.

    Args:
        path: the list that an evaluation writes: ``image_id``, ``category_id``, ``bbox`` (XYWH
            pixels), ``score``.

    Raises:
        DatasetError: not such a list.
    """
    path = Path(path)
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot be read: {error}", where=printable(path)) from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and entry.keys() >= _FIELDS for entry in entries
    ):
        raise DatasetError(
            f"no list of predictions with {', '.join(sorted(_FIELDS))}",
            where=printable(path),
            fix="give inference_*/coco_instances_results.json",
        )
    found: dict[Any, list[Prediction]] = defaultdict(list)
    for entry in entries:
        found[entry["image_id"]].append(entry)
    return dict(found)


def choose(
    predictions: Sequence[Prediction],
    *,
    threshold: float = 0.5,
    most: int = 30,
    smallest: float = 0.0,
    unique: bool = False,
) -> list[Prediction]:
    """The predictions of an image to draw.

    Args:
        predictions: by falling score, as evaluations write them.
        threshold: least score.
        most: with ``unique``, how many predictions are looked at.
        smallest: with ``unique``, boxes of less area (square pixels) are left out.
        unique: one prediction per box, the first; a region that answers to many classes is drawn
            once.
    """
    confident = [entry for entry in predictions if entry["score"] >= threshold]
    if not unique:
        return confident
    seen: set[tuple[float, ...]] = set()
    chosen = []
    for entry in confident[:most]:
        box = tuple(entry["bbox"])
        if box[2] * box[3] >= smallest and box not in seen:
            seen.add(box)
            chosen.append(entry)
    return chosen
