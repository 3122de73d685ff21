"""The boxes of a COCO annotation file, by file name.

Legend: K boxes; ``rects_K4`` x, y, width, height.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError
from ext_common.images import printable
from soco_ext.proposals.filtering import is_rect

_ROUNDING = 1e-6  # pixels: x + width of decimals may miss the border by the last bit


def read_coco_boxes(path: str | Path) -> dict[str, list[list[float]]]:
    """x, y, width, height of the boxes of each image that the file has; crowds are left out.

    Raises:
        DatasetError: no COCO file; an image without id or file name, or two of one id; an
            annotation without an image of the file or without a box of four numbers.
    """
    content, where = read_json(path), printable(path)
    images, annotations = content.get("images"), content.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise DatasetError("no lists 'images' and 'annotations'", where=where)
    names = _names_by_id(images, where)
    rects: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for place, annotation in enumerate(annotations):
        _require_object(annotation, "annotation", place, where)
        key, box = annotation.get("image_id"), annotation.get("bbox")
        name = names.get(key) if _is_id(key) else None
        if name is None or not is_rect(box):
            what = f"box {short(box)}" if name is not None else f"image_id {short(key)}"
            raise DatasetError(
                f"annotation {short(annotation.get('id'))} has no image or no box of four numbers: "
                f"its {what}",
                where=where,
                fix="correct the annotation or take it out",
            )
        if not annotation.get("iscrowd", 0):
            rects[name].append([float(number) for number in box])
    return rects


def clip_rects(
    rects_K4: NDArray[np.float64], size_hw: tuple[int, int]
) -> tuple[NDArray[np.float64], int, int]:
    """The parts of rectangles that lie in a picture of (height, width).

    Returns:
        Those with an area in the picture; how many of them were cut at its border; how many were
        left out.
    """
    size_2 = np.array(size_hw[::-1], dtype=np.float64)
    low_K2, high_K2 = rects_K4[:, :2], rects_K4[:, :2] + rects_K4[:, 2:]
    cut_K: NDArray[np.bool_] = np.any(
        (low_K2 < -_ROUNDING) | (high_K2 > size_2 + _ROUNDING), axis=1
    )
    low_K2, high_K2 = np.clip(low_K2, 0, size_2), np.clip(high_K2, 0, size_2)
    inside_K: NDArray[np.bool_] = np.all(high_K2 > low_K2, axis=1)
    # a box inside keeps its numbers, which x + width - x would change in the last bit
    clipped_K4 = np.where(
        cut_K[:, None], np.concatenate([low_K2, high_K2 - low_K2], axis=1), rects_K4
    )
    return clipped_K4[inside_K], int((cut_K & inside_K).sum()), int((~inside_K).sum())


def _names_by_id(images: Sequence[Any], where: str) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for place, image in enumerate(images):
        _require_object(image, "image", place, where)
        key, name = image.get("id"), image.get("file_name")
        if not _is_id(key):
            raise DatasetError(
                f"image number {place} (from 0) has the id {short(key)}",
                where=where,
                fix="give it an id of its own",
            )
        if not isinstance(name, str) or not name:
            raise DatasetError(
                f"image {short(key)} has the file_name {short(name)}",
                where=where,
                fix="give its path below --images, or its name in the archive",
            )
        if key in names:
            raise DatasetError(
                f"two images of the id {short(key)}: {printable(names[key])}, {printable(name)}",
                where=where,
                fix="give each image an id of its own",
            )
        names[key] = name
    return names


def _require_object(record: object, what: str, place: int, where: str) -> None:
    if not isinstance(record, dict):
        raise DatasetError(
            f"{what} number {place} (from 0) is {short(record)}, not an object",
            where=where,
            fix="use the COCO layout",
        )


def _is_id(value: object) -> bool:
    return isinstance(value, int | float | str)
