"""LVIS v1 records of scenes and label pictures.

Shapes: ``mask_HW`` bool. Boxes are XYWH in pixels. Polygons are flat lists x0, y0, x1, y1, ... in
pixels, where pixel (row, column) covers the square from (column, row) to (column+1, row+1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import Visible
from .classes import CLASSES, DemoClass

Record = dict[str, Any]

_FINE = 4  # outlines are traced on a grid this much finer, so that they follow the pixels' edges
_TOLERANCE = 0.6  # pixels that a simplified outline may stray
MIN_PART_PIXELS = 6  # smaller islands of a mask are not annotated


def without_islands(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its parts of fewer than MIN_PART_PIXELS pixels."""
    count, part_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)
    areas = np.bincount(part_HW.ravel(), minlength=count)
    keep = areas >= MIN_PART_PIXELS
    keep[0] = False  # what is not mask
    return keep[part_HW]


def mask_to_polygons(mask_HW: NDArray[np.bool_]) -> list[list[float]]:
    """Outline a mask, one polygon per connected part.

    A hole is joined to the outline around it by a cut of no width: COCO's and LVIS' polygons have
    no holes of their own, and their rasteriser leaves the inside of such a cut outline empty.

    Args:
        mask_HW: the visible pixels.

    Returns:
        Flat polygons; empty where the mask is.
    """
    fine_HW = np.kron(mask_HW.astype(np.uint8), np.ones((_FINE, _FINE), np.uint8))
    contours, tree = cv2.findContours(fine_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for place, contour in enumerate(contours):
        if tree[0, place, 3] >= 0:
            continue  # a hole: it is cut out of the outline that it belongs to
        outline_P2 = _to_pixels(contour)
        for child, hole in enumerate(contours):
            is_own_hole = tree[0, child, 3] == place
            if is_own_hole and cv2.contourArea(hole) >= MIN_PART_PIXELS * _FINE**2:
                outline_P2 = _cut_to_hole(outline_P2, _to_pixels(hole))
        polygons.append([float(x) for x in np.round(outline_P2, 2).ravel()])
    return polygons


def _to_pixels(contour: NDArray[np.int32]) -> NDArray[np.float64]:
    simple = cv2.approxPolyDP(contour, _TOLERANCE * _FINE, True)
    if len(simple) < 3:
        simple = contour
    return (simple[:, 0].astype(np.float64) + 0.5) / _FINE


def _cut_to_hole(
    outline_P2: NDArray[np.float64], hole_Q2: NDArray[np.float64]
) -> NDArray[np.float64]:
    gaps_PQ = np.linalg.norm(outline_P2[:, None] - hole_Q2[None], axis=2)
    p, q = np.unravel_index(np.argmin(gaps_PQ), gaps_PQ.shape)
    around_hole = np.concatenate([hole_Q2[q:], hole_Q2[: q + 1]])
    return np.concatenate([outline_P2[: p + 1], around_hole, outline_P2[p:]])


class LvisFile:
    """Collects the records of one annotation file.

    Args:
        asked: the classes that were looked for in these pictures: those that are absent from a
            picture become its ``neg_category_ids``.
    """

    def __init__(self, asked: Sequence[DemoClass]) -> None:
        self._asked = {kind.id for kind in asked}
        self._images: list[Record] = []
        self._annotations: list[Record] = []
        self._pictures_of: dict[int, set[int]] = defaultdict(set)
        self._instances_of: dict[int, int] = defaultdict(int)

    def add_scene(
        self, file_name: str, size_hw: tuple[int, int], objects: Sequence[Visible]
    ) -> list[Record]:
        """Add a picture with the boxes and masks of its objects; returns the annotations."""
        image_id = len(self._images) + 1
        added = []
        for visible in objects:
            mask_HW = without_islands(visible.mask_HW)
            if not mask_HW.any():
                continue
            record = {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": visible.class_id,
                "bbox": _bounding_box(mask_HW),
                "area": float(mask_HW.sum()),
                "segmentation": mask_to_polygons(mask_HW),
            }
            self._annotations.append(record)
            added.append(record)
            self._pictures_of[visible.class_id].add(image_id)
            self._instances_of[visible.class_id] += 1
        present = {record["category_id"] for record in added}
        image = self._image(file_name, size_hw)
        image["neg_category_ids"] = sorted(self._asked - present)
        self._images.append(image)
        return added

    def add_labelled(self, file_name: str, size_hw: tuple[int, int], class_id: int) -> None:
        """Add a picture that is known to show a class, without saying where."""
        image = self._image(file_name, size_hw)
        image["pos_category_ids"] = [class_id]
        self._images.append(image)
        self._pictures_of[class_id].add(image["id"])

    def as_dict(self, description: str) -> Record:
        """The file's content in the LVIS v1 layout."""
        return {
            "info": {
                "description": description,
                "version": "1.0",
                "year": 2026,
                "contributor": "tools/make_demo_dataset.py",
                "date_created": "2026-01-01",
            },
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [self._category(kind) for kind in CLASSES],
        }

    def _image(self, file_name: str, size_hw: tuple[int, int]) -> Record:
        return {
            "id": len(self._images) + 1,
            "file_name": file_name,
            "height": int(size_hw[0]),
            "width": int(size_hw[1]),
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }

    def _category(self, kind: DemoClass) -> Record:
        return {
            "id": kind.id,
            "name": kind.name,
            "synset": f"{kind.attribute}_{kind.shape}.n.01",
            "synonyms": [kind.name],
            "def": f"a {kind.shape} that is {kind.attribute}",
            "frequency": kind.frequency,
            "image_count": len(self._pictures_of[kind.id]),
            "instance_count": self._instances_of[kind.id],
        }


def _bounding_box(mask_HW: NDArray[np.bool_]) -> list[float]:
    """XYWH of the mask's pixels."""
    rows, cols = np.nonzero(mask_HW)
    return [
        float(cols.min()),
        float(rows.min()),
        float(np.ptp(cols) + 1),
        float(np.ptp(rows) + 1),
    ]
