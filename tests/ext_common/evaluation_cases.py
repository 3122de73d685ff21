"""Small made datasets and predictions for the evaluation tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

SIDE = 160


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """Compressed RLE that JSON can hold."""
    code = mask_utils.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def diamond(box_xywh: Sequence[float]) -> list[list[float]]:
    """Polygon through the middles of a box's sides."""
    x, y, w, h = box_xywh
    return [[x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]


def random_content(
    seed: int, *, images: int = 12, classes: int = 6, federated: bool = False, crowds: bool = False
) -> dict[str, Any]:
    """Annotations in COCO or LVIS layout; the last class has no objects, ids have gaps."""
    rng = np.random.default_rng(seed)
    ids = [3 * i + 2 for i in range(classes)]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for index, key in enumerate(ids):
        content["categories"].append({"id": key, "name": f"class {index}"})
    for image_id in rng.permutation(images) + 10:
        image = {"id": int(image_id), "width": SIDE, "height": SIDE, "file_name": f"{image_id}.jpg"}
        content["images"].append(image)
        for _ in range(rng.integers(0, 7)):
            size = rng.choice([12, 40, 110]) * rng.uniform(0.7, 1.3, 2)
            corner = rng.uniform(0, SIDE - np.minimum(size, SIDE - 1))
            box = [*corner.round(1).tolist(), *size.round(1).tolist()]
            annotation = {
                "id": 7 + len(content["annotations"]),
                "image_id": int(image_id),
                "category_id": int(rng.choice(ids[:-1])),
                "bbox": box,
                "area": box[2] * box[3] / 2,
                "segmentation": diamond(box),
                "iscrowd": 0,
            }
            if crowds and rng.random() < 0.2:
                code = mask_utils.frPyObjects(annotation["segmentation"], SIDE, SIDE)
                annotation["segmentation"] = rle(mask_utils.decode(code)[..., 0])
                annotation["iscrowd"] = 1
            content["annotations"].append(annotation)
    if federated:
        _add_federated_fields(content, rng)
    return content


def _add_federated_fields(content: dict[str, Any], rng: np.random.Generator) -> None:
    for index, category in enumerate(content["categories"]):
        category["frequency"] = "rcf"[index % 3]
    ids = [category["id"] for category in content["categories"]]
    for image in content["images"]:
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        absent = [key for key in ids if key not in present]
        image["neg_category_ids"] = [key for key in absent if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [key for key in present if rng.random() < 0.3]


def random_predictions(
    content: Mapping[str, Any], seed: int, *, masks: bool = False, extra: int = 4
) -> dict[int, Instances]:
    """By image: shaken objects with mostly right classes, plus some boxes anywhere."""
    rng = np.random.default_rng(seed)
    ids = sorted(category["id"] for category in content["categories"])
    predictions = {}
    for image in content["images"]:
        boxes, classes = [], []
        for ann in content["annotations"]:
            if ann["image_id"] != image["id"]:
                continue
            for _ in range(rng.integers(0, 3)):
                scale = rng.choice([0.01, 0.05, 0.2])
                shake = rng.normal(0, scale, 4) * np.array(ann["bbox"])[[2, 3, 2, 3]]
                boxes.append(np.array(ann["bbox"]) + shake)
                right = ids.index(ann["category_id"])
                classes.append(right if rng.random() < 0.8 else rng.integers(len(ids)))
        for _ in range(extra):
            boxes.append(rng.uniform(5, SIDE / 2, 4))
            classes.append(rng.integers(len(ids)))
        boxes_D4 = np.maximum(np.array(boxes, dtype=np.float32).reshape(-1, 4), 1)
        boxes_D4[:, 2:] += boxes_D4[:, :2]
        # two decimals: equal scores occur within and between images
        scores_D = rng.uniform(0, 1, len(boxes_D4)).round(2)
        scores_D[len(scores_D) - extra :] *= 0.5
        predictions[image["id"]] = make_instances(boxes_D4, scores_D, classes, masks=masks)
    return predictions


def perfect_predictions(content: Mapping[str, Any], *, masks: bool = False) -> dict[int, Instances]:
    """Exactly the annotations, with score 1."""
    ids = sorted(category["id"] for category in content["categories"])
    predictions = {}
    for image in content["images"]:
        found = [ann for ann in content["annotations"] if ann["image_id"] == image["id"]]
        boxes_D4 = np.array([ann["bbox"] for ann in found], dtype=np.float64).reshape(-1, 4)
        boxes_D4[:, 2:] += boxes_D4[:, :2]
        classes = [ids.index(ann["category_id"]) for ann in found]
        instances = make_instances(boxes_D4, np.ones(len(found)), classes)
        if masks:
            polygons = [mask_utils.frPyObjects(ann["segmentation"], SIDE, SIDE) for ann in found]
            bits = [mask_utils.decode(code)[..., 0] for code in polygons]
            stacked = np.stack(bits) if bits else np.zeros((0, SIDE, SIDE))
            instances.pred_masks = torch.as_tensor(stacked, dtype=torch.bool)
        predictions[image["id"]] = instances
    return predictions


def make_instances(
    boxes_D4: np.ndarray, scores_D: np.ndarray, classes: Sequence[int], *, masks: bool = False
) -> Instances:
    """detectron2 predictions; masks are rounded diamonds in the boxes."""
    instances = Instances((SIDE, SIDE))
    instances.pred_boxes = Boxes(torch.as_tensor(boxes_D4).reshape(-1, 4))
    instances.scores = torch.as_tensor(scores_D, dtype=torch.float64)
    instances.pred_classes = torch.as_tensor([int(c) for c in classes], dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.as_tensor(rounded_diamonds(np.asarray(boxes_D4)))
    return instances


def rounded_diamonds(boxes_D4: np.ndarray) -> np.ndarray:
    """Masks a little larger than :func:`diamond` of the same boxes: bool [D, SIDE, SIDE]."""
    grid = np.arange(SIDE) + 0.5
    centre = (boxes_D4[:, :2] + boxes_D4[:, 2:]) / 2
    half = np.maximum((boxes_D4[:, 2:] - boxes_D4[:, :2]) / 2, 0.5)
    dx = (grid[None] - centre[:, :1]) / half[:, :1]
    dy = (grid[None] - centre[:, 1:]) / half[:, 1:]
    return np.abs(dx[:, None, :]) ** 1.2 + np.abs(dy[:, :, None]) ** 1.2 <= 1


@contextmanager
def registered(
    folder: Path, content: Mapping[str, Any], name: str = "made", **metadata: Any
) -> Iterator[str]:
    """A dataset on disk, registered through detectron2 for the length of a test."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    register_coco_instances(name, metadata, str(path), str(folder))
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator: Any, predictions: Mapping[int, Instances]) -> dict[str, dict[str, float]]:
    """All predictions through a detectron2 evaluator, two images at a time."""
    evaluator.reset()
    items = list(predictions.items())
    for i in range(0, len(items), 2):
        batch = items[i : i + 2]
        evaluator.process(
            [{"image_id": key} for key, _ in batch], [{"instances": found} for _, found in batch]
        )
    return evaluator.evaluate()


def coco_records(
    content: Mapping[str, Any], predictions: Mapping[int, Instances]
) -> list[dict[str, Any]]:
    """Result records with the file's category ids, for the oracles."""
    ids = sorted(category["id"] for category in content["categories"])
    records = []
    for image_id, found in predictions.items():
        for i in range(len(found)):
            x1, y1, x2, y2 = found.pred_boxes.tensor[i].tolist()
            record = {
                "image_id": image_id,
                "category_id": ids[int(found.pred_classes[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found.scores[i]),
            }
            if found.has("pred_masks"):
                record["segmentation"] = rle(found.pred_masks[i].numpy())
            records.append(record)
    return records
