"""A dataset of four pictures and a detector of a few thousand weights, on disk, for training tests."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CLASSES = ("disc", "square")
IMAGES = 4

MODEL: dict[str, Any] = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "DEVICE": "cpu",
    "MASK_ON": False,
    "WEIGHTS": "",
    # frozen batch norms that were never trained let activations grow
    "PIXEL_STD": [1000.0, 1000.0, 1000.0],
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
    "RESNETS": {
        "DEPTH": 50,
        "WIDTH_PER_GROUP": 4,
        "STEM_OUT_CHANNELS": 8,
        "RES2_OUT_CHANNELS": 16,
        "OUT_FEATURES": ["res4", "res5"],
        "NORM": "FrozenBN",
    },
    "FPN": {"IN_FEATURES": ["res4", "res5"], "OUT_CHANNELS": 16},
    "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128]], "ASPECT_RATIOS": [[1.0]]},
    # more places than anchors and proposals: nothing is drawn at random
    "RPN": {
        "IN_FEATURES": ["p4", "p5", "p6"],
        "BATCH_SIZE_PER_IMAGE": 4096,
        "POSITIVE_FRACTION": 1.0,
        "PRE_NMS_TOPK_TRAIN": 8,
        "POST_NMS_TOPK_TRAIN": 8,
        "NMS_THRESH": 1.0,
    },
    "ROI_HEADS": {
        "NAME": "StandardROIHeads",
        "IN_FEATURES": ["p4", "p5"],
        "NUM_CLASSES": len(CLASSES),
        "BATCH_SIZE_PER_IMAGE": 512,
        "POSITIVE_FRACTION": 1.0,
    },
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "FC_DIM": 16},
}


@dataclass(frozen=True)
class TinyRun:
    """Paths of one prepared training."""

    config_file: Path
    output: Path
    data: Path
    val: str


def write_dataset(folder: Path, *names: str) -> Path:
    """Four pictures with two boxes each; the returned YAML file registers them under the names."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    annotations, records = [], []
    for number in range(1, IMAGES + 1):
        pixels = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
        for category, left in ((1, 4), (2, 50)):
            left += 3 * number
            pixels[10:42, left : left + 30] = (250, 20, 20) if category == 1 else (20, 20, 250)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [left, 10, 30, 32],
                    "area": 960,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(images / f"{number}.png")
        records.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    entry = {"type": "coco", "json": "instances.json", "images": "images", "evaluator": "coco"}
    registry = folder / "datasets.yaml"
    registry.write_text(yaml.safe_dump({"datasets": dict.fromkeys(names, entry)}))
    return registry


def write_run(folder: Path, **changes: Any) -> TinyRun:
    """A config file that trains the tiny model on :func:`write_dataset` into ``folder/output``.

    Args:
        folder: gets the data, the config and later the output.
        changes: blocks to update, e.g. ``SOLVER={"MAX_ITER": 3}``.
    """
    # names are for a whole process, and every test has a folder of its own
    number = zlib.crc32(str(folder).encode())
    train, val = f"tiny_train_{number}", f"tiny_val_{number}"
    content: dict[str, Any] = {
        "MODEL": MODEL,
        "DATASETS": {
            "REGISTRY": [str(write_dataset(folder / "data", train, val))],
            "TRAIN": [train],
            "TEST": [],
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64, "RANDOM_FLIP": "none"},
        "SOLVER": {
            "IMS_PER_BATCH": 2,
            "MAX_ITER": 4,
            "STEPS": [],
            "BASE_LR": 0.01,
            "WARMUP_ITERS": 0,
            "CHECKPOINT_PERIOD": 2,
        },
        "SEED": 7,
        "OUTPUT_DIR": str(folder / "output"),
        "VERSION": 2,
    }
    for block, values in changes.items():
        old = content.get(block)
        content[block] = {**old, **values} if isinstance(old, dict) else values
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return TinyRun(path, folder / "output", folder / "data", val)
