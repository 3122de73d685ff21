"""Small annotation files for the tests of ``ext_common.data``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def box(annotation_id: int, image_id: int, category_id: int, bbox: list[float]) -> dict[str, Any]:
    """An annotation whose polygon is the box."""
    x, y, w, h = bbox
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": w * h,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }


def content(
    sizes: list[tuple[int, int]],
    annotations: list[dict[str, Any]] | None = None,
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
) -> dict[str, Any]:
    """LVIS-style content with images 1, 2, ... of the given (height, width)."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            for number, (height, width) in enumerate(sizes, start=1)
        ],
        "annotations": annotations if annotations is not None else [],
        "categories": [{"id": number + 10, "name": name} for number, name in enumerate(classes)],
    }


def write(path: Path, value: Any) -> Path:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_images(folder: Path, data: dict[str, Any], seed: int = 0) -> None:
    """Noise pictures for every image of some content."""
    generator = np.random.default_rng(seed)
    for image in data["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
