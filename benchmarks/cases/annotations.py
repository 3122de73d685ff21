"""Starting with a large annotation file: detectron2's loading, and ours with an index.

``naive`` is detectron2's COCO loader. ``ours`` is the second start, with the index that the first
one left; ``first start`` makes it. Each way ends with records that loader workers can share, and
reads some of them. The peak of memory is taken in a process of its own for each way
(benchmarks/memory.py). The large size takes minutes.

Legend: B boxes of the images that are compared.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets import load_lvis_json as load_lvis

from benchmarks.case import Case, Problem, Results, Variant
from ext_common.data.index_store import open_index
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.lvis_json import LoadOptions, load_lvis_json
from ext_common.data.training_records import packed

BOXES_PER_IMAGE = 8
CLASSES = 1000
COMPARED = 50  # images whose boxes are results
OPTIONS = LoadOptions(allow_links=True)


def write_annotations(path: Path, boxes: int) -> None:
    """A COCO file with a polygon of ten points for every box, about 300 bytes each."""
    draw = random.Random(0)
    images = max(boxes // BOXES_PER_IMAGE, 1)
    shapes = []
    for _ in range(min(boxes, 5000)):
        place = [round(draw.uniform(1, 300), 2) for _ in range(4)]
        polygon = [round(draw.uniform(1, 300), 2) for _ in range(20)]
        category = draw.randrange(CLASSES) + 1
        shape = {"bbox": place, "area": 4.5, "iscrowd": 0, "segmentation": [polygon]}
        shapes.append(json.dumps({"category_id": category, **shape})[1:])
    with path.open("w", encoding="utf-8") as stream:
        stream.write('{"images": [')
        for number in range(images):
            stream.write(",\n" if number else "\n")
            stream.write(f'{{"id": {number + 1}, {_fields_of_image(number)}}}')
        stream.write('],\n"annotations": [')
        for number in range(boxes):
            stream.write(",\n" if number else "\n")
            # annotations of an image are not together, as in LVIS
            keys = f'"id": {number + 1}, "image_id": {number % images + 1}'
            stream.write(f"{{{keys}, {shapes[number % len(shapes)]}")
        categories = [{"id": n + 1, "name": f"class {n}"} for n in range(CLASSES)]
        stream.write(f'],\n"categories": {json.dumps(categories)}}}\n')


def _fields_of_image(number: int) -> str:
    """What the COCO and the LVIS loader need of an image."""
    name = f"{number:012d}.jpg"
    return (
        f'"file_name": "{name}", "coco_url": "http://host/train2017/{name}", '
        '"height": 640, "width": 640, "neg_category_ids": [], "not_exhaustive_category_ids": []'
    )


def build(device: torch.device, *, boxes: int) -> Problem:
    """Write the file, and its index.

    Args:
        device: not used.
        boxes: annotations in the file.
    """
    folder = tempfile.TemporaryDirectory(prefix="annotations-")
    path = Path(folder.name) / "instances.json"
    write_annotations(path, boxes)
    open_index(path, OPTIONS)

    def ours(fresh: bool = False) -> Results:
        if fresh:
            for index in Path(folder.name).glob("*.index"):
                index.unlink()
        return _results(IndexedRecords(open_index(path, OPTIONS), "", OPTIONS), first_class=0)

    def read() -> Results:
        return _results(packed(load_lvis_json(path, "", OPTIONS)), first_class=0)

    def lvis() -> Results:
        return _results(packed(load_lvis(str(path), "")), first_class=0)

    def naive() -> Results:
        # without a name of a dataset it keeps the file's category ids
        return _results(packed(load_coco_json(str(path), "")), first_class=1)

    return Problem(
        {
            "ours": ours,
            "first start": partial(ours, fresh=True),
            "without index": read,
            "detectron2 LVIS": lvis,
            "naive": naive,
        }
    )


def _results(records: Sequence[dict[str, Any]] | Any, *, first_class: int) -> Results:
    count = len(records)
    chosen = [records[place * count // COMPARED] for place in range(COMPARED)]
    objects = [found for record in chosen for found in record["annotations"]]
    return {
        "images": torch.tensor([count]),
        "ids": torch.tensor([record["image_id"] for record in chosen]),
        "boxes_B4": torch.tensor([found["bbox"] for found in objects], dtype=torch.float64),
        "classes_B": torch.tensor([found["category_id"] - first_class for found in objects]),
        "points": torch.tensor([found["segmentation"][0] for found in objects]),
    }


CASE = Case(
    name="annotations",
    what="start with a large annotation file: detectron2's loading or ours with an index",
    variants=(
        Variant("100k", partial(build, boxes=100_000)),
        Variant("1M", partial(build, boxes=1_000_000), target=20),
    ),
    tiny=Variant("tiny", partial(build, boxes=2000)),
    most_repeats=3,
)
