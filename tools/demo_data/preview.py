"""One sheet that shows the dataset: scenes with their boxes, and a label picture of every class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_TILE = 320
_GAP = 6
_CAPTION = 30
_COLUMNS = 6
_BASE_COLOUR = (60, 220, 60)  # BGR
_NOVEL_COLOUR = (0, 165, 255)
_PAPER = 250
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_preview(folder: Path) -> None:
    """Write ``preview.png`` (BGR through OpenCV) from a folder's pictures and JSON files.

    Base classes are drawn green, novel classes orange.
    """
    rows = []
    for name in ("base_train", "val"):
        content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tiles = [
            _scene_tile(folder / "images", image, content) for image in content["images"][:_COLUMNS]
        ]
        rows.append(_titled(f"{name}: boxes (green: base, orange: novel)", tiles))
    content = json.loads((folder / "image_labels.json").read_text(encoding="utf-8"))
    first_of = {image["pos_category_ids"][0]: image for image in reversed(content["images"])}
    tiles = [
        _label_tile(folder / "labels", image, content) for _, image in sorted(first_of.items())
    ]
    for start in range(0, len(tiles), _COLUMNS):
        rows.append(_titled("image_labels: no boxes", tiles[start : start + _COLUMNS]))
    cv2.imwrite(str(folder / "preview.png"), np.concatenate(rows))


def _titled(title: str, tiles: list[Image]) -> Image:
    width = _COLUMNS * (_TILE + _GAP) + _GAP
    row_HW3 = np.full((_CAPTION + _TILE + _GAP, width, 3), _PAPER, np.uint8)
    cv2.putText(row_HW3, title, (_GAP, 21), _FONT, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    for place, tile_HW3 in enumerate(tiles):
        left = _GAP + place * (_TILE + _GAP)
        row_HW3[_CAPTION : _CAPTION + _TILE, left : left + _TILE] = tile_HW3
    return row_HW3


def _fitted(path: Path) -> tuple[Image, float]:
    """The picture, enlarged to a tile's longer side, and by how much."""
    image_HW3 = cv2.imread(str(path))
    scale = _TILE / max(image_HW3.shape[:2])
    return cv2.resize(image_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), scale


def _on_tile(image_HW3: Image) -> Image:
    tile_HW3 = np.full((_TILE, _TILE, 3), 225, np.uint8)
    height, width = min(image_HW3.shape[0], _TILE), min(image_HW3.shape[1], _TILE)
    top, left = (_TILE - height) // 2, (_TILE - width) // 2
    tile_HW3[top : top + height, left : left + width] = image_HW3[:height, :width]
    return tile_HW3


def _colour_of(category: dict[str, Any]) -> tuple[int, int, int]:
    return _NOVEL_COLOUR if category["frequency"] == "r" else _BASE_COLOUR


def _scene_tile(root: Path, image: dict[str, Any], content: dict[str, Any]) -> Image:
    categories = {category["id"]: category for category in content["categories"]}
    image_HW3, scale = _fitted(root / image["file_name"])
    for record in content["annotations"]:
        if record["image_id"] != image["id"]:
            continue
        category = categories[record["category_id"]]
        for polygon in record["segmentation"]:
            points_P2 = np.round(np.reshape(polygon, (-1, 2)) * scale).astype(np.int32)
            cv2.polylines(image_HW3, [points_P2], True, (255, 255, 255), 1, cv2.LINE_AA)
        x, y, width, height = (round(v * scale) for v in record["bbox"])
        colour = _colour_of(category)
        cv2.rectangle(image_HW3, (x, y), (x + width, y + height), colour, 2, cv2.LINE_AA)
        _write_name(image_HW3, category["name"], (x, y), colour)
    return _on_tile(image_HW3)


def _label_tile(root: Path, image: dict[str, Any], content: dict[str, Any]) -> Image:
    categories = {category["id"]: category for category in content["categories"]}
    category = categories[image["pos_category_ids"][0]]
    image_HW3, _ = _fitted(root / image["file_name"])
    _write_name(image_HW3, category["name"], (0, image_HW3.shape[0]), _colour_of(category), 0.6)
    return _on_tile(image_HW3)


def _write_name(
    image_HW3: Image,
    name: str,
    corner_xy: tuple[int, int],
    colour: tuple[int, int, int],
    scale: float = 0.42,
) -> None:
    """Write a name on a filled plate that ends at the corner and stays inside the picture."""
    (width, height), below = cv2.getTextSize(name, _FONT, scale, 1)
    left = int(np.clip(corner_xy[0], 0, max(0, image_HW3.shape[1] - width - 4)))
    bottom = int(np.clip(corner_xy[1], height + below + 2, image_HW3.shape[0]))
    top = bottom - height - below - 2
    cv2.rectangle(image_HW3, (left, top), (left + width + 4, bottom), colour, cv2.FILLED)
    place = (left + 2, bottom - below)
    cv2.putText(image_HW3, name, place, _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
