"""One picture's detections as plain data, and its forms on disk: COCO JSON and CSV.

Shapes: R = detections of the picture; boxes_R4 = XYXY in absolute pixels of the upright picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances
from numpy.typing import NDArray

from ext_common.atomic_file import write_bytes
from ext_common.errors import DatasetError, VocabularyError
from ext_common.images import printable

CSV_COLUMNS = (
    *("file_name", "height", "width", "class_id", "class_name", "score"),
    *("x1", "y1", "x2", "y2"),
)


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths; ``pycocotools.mask.decode`` reads it."""

    size: list[int]  # height, width
    counts: str


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture. The arrays are read-only copies.

    Args:
        file_name: the picture's path, as it was given.
        image_size: (height, width) in pixels.
        boxes_R4: float32, XYXY, absolute pixels.
        scores_R: float32, 0..1.
        class_ids_R: int64, indices into ``class_names``.
        class_names: the whole vocabulary that was looked for, in the order of the class ids.
        masks: one per detection, of the size of the picture; None where the model has no masks.

    Raises:
        DatasetError: lengths or shapes that do not match.
        VocabularyError: a class id that has no name.
    """

    file_name: str
    image_size: tuple[int, int]
    boxes_R4: NDArray[np.float32]
    scores_R: NDArray[np.float32]
    class_ids_R: NDArray[np.int64]
    class_names: tuple[str, ...] = field(repr=False)
    masks: tuple[Rle, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # the class is frozen: this is how its own constructor stores what it made
        store = object.__setattr__
        store(self, "image_size", (int(self.image_size[0]), int(self.image_size[1])))
        store(self, "boxes_R4", _frozen(self.boxes_R4, np.float32))
        store(self, "scores_R", _frozen(self.scores_R, np.float32))
        store(self, "class_ids_R", _frozen(self.class_ids_R, np.int64))
        store(self, "class_names", tuple(self.class_names))
        store(self, "masks", None if self.masks is None else tuple(self.masks))
        self._check()

    def _check(self) -> None:
        where = printable(self.file_name)
        found = len(self.scores_R)
        shapes = [self.boxes_R4.shape, self.scores_R.shape, self.class_ids_R.shape]
        if shapes != [(found, 4), (found,), (found,)]:
            raise DatasetError(f"shapes of boxes, scores, class ids: {shapes}", where=where)
        if self.masks is not None and len(self.masks) != found:
            raise DatasetError(f"{len(self.masks)} masks of {found} detections", where=where)
        if not (np.isfinite(self.boxes_R4).all() and np.isfinite(self.scores_R).all()):
            raise DatasetError("boxes or scores that are not finite", where=where)
        ids_R, count = self.class_ids_R, len(self.class_names)
        if len(ids_R) and not (ids_R.min() >= 0 and ids_R.max() < count):
            raise VocabularyError(
                f"class ids {ids_R.min()}..{ids_R.max()} but {count} class names",
                where=where,
                fix="give the vocabulary that the model was run with",
            )

    def __len__(self) -> int:
        return len(self.scores_R)

    @property
    def names(self) -> tuple[str, ...]:
        """The class name of each detection."""
        return tuple(self.class_names[index] for index in self.class_ids_R)

    @classmethod
    def from_instances(
        cls, instances: Instances, class_names: Sequence[str], file_name: str
    ) -> Detections:
        """From a detectron2 model's output, at the picture's original size.

        Args:
            instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and maybe ``pred_masks``
                (bool [R, H, W]), on any device.
            class_names: the vocabulary, in the order of ``pred_classes``.
            file_name: the picture's path.
        """
        found = instances.to("cpu")
        masks = None
        if found.has("pred_masks"):
            masks = tuple(encode_mask(mask.numpy()) for mask in found.pred_masks)
        return cls(
            file_name=file_name,
            image_size=found.image_size,
            boxes_R4=found.pred_boxes.tensor.detach().numpy(),
            scores_R=found.scores.detach().numpy(),
            class_ids_R=found.pred_classes.numpy(),
            class_names=tuple(class_names),
            masks=masks,
        )

    def filter(self, threshold: float) -> Detections:
        """Those with at least this score, in the same order."""
        kept = np.flatnonzero(self.scores_R >= np.float32(threshold))
        return Detections(
            self.file_name,
            self.image_size,
            self.boxes_R4[kept],
            self.scores_R[kept],
            self.class_ids_R[kept],
            self.class_names,
            None if self.masks is None else tuple(self.masks[index] for index in kept),
        )


def encode_mask(mask_HW: NDArray[np.bool_]) -> Rle:
    """A bool [H, W] mask as run lengths that JSON can hold."""
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return Rle(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode())


def decode_mask(rle: Rle) -> NDArray[np.bool_]:
    """The bool [H, W] mask of :func:`encode_mask`."""
    mask_HW: NDArray[np.bool_] = coco_mask.decode(rle).astype(bool)
    return mask_HW


def to_coco_json(
    results: Sequence[Detections], class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """One COCO dictionary: ``images``, ``annotations`` (with ``score``) and ``categories``.

    Ids count from 1: the category id is the class id + 1, the image id the place in ``results``
    + 1. Every picture and every class is listed, also those without detections, so that an empty
    result is a valid file. Boxes are XYWH, as COCO has them.

    Args:
        results: all of the same vocabulary.
        class_names: the vocabulary; needed only where ``results`` may be empty.

    Raises:
        VocabularyError: the results are of different vocabularies.
    """
    names = tuple(class_names) if class_names is not None else None
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, start=1):
        names = result.class_names if names is None else names
        if result.class_names != names:
            raise VocabularyError(
                f"its {len(result.class_names)} class names differ from the {len(names)} before",
                where=printable(result.file_name),
                fix="write one COCO file per vocabulary",
            )
        height, width = result.image_size
        images.append(
            {"id": image_id, "file_name": result.file_name, "height": height, "width": width}
        )
        annotations += _coco_annotations(result, image_id, first_id=len(annotations) + 1)
    categories = [{"id": index, "name": name} for index, name in enumerate(names or (), start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_annotations(result: Detections, image_id: int, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    boxes_R4 = result.boxes_R4.astype(np.float64)  # so that x + width gives x2 back exactly
    for index, (x1, y1, x2, y2) in enumerate(boxes_R4.tolist()):
        annotation = {
            "id": first_id + index,
            "image_id": image_id,
            "category_id": int(result.class_ids_R[index]) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": float(result.scores_R[index]),
        }
        if result.masks is not None:
            mask = result.masks[index]
            annotation |= {"segmentation": mask, "area": float(coco_mask.area(mask))}
        annotations.append(annotation)
    return annotations


def from_coco_json(content: dict[str, Any]) -> list[Detections]:
    """The results that :func:`to_coco_json` wrote.

    Raises:
        DatasetError: a missing field, or an annotation of an unknown image or category.
    """
    try:
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        class_ids = {category["id"]: index for index, category in enumerate(categories)}
        names = tuple(category["name"] for category in categories)
        of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        return [
            _from_coco(image, of_image[image["id"]], class_ids, names)
            for image in content["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"not COCO results: missing or unknown {error}",
            fix="a file written by write_coco has images, annotations with scores, categories",
        ) from error


def _from_coco(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    class_ids: dict[int, int],
    names: tuple[str, ...],
) -> Detections:
    boxes_R4 = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes_R4[:, 2:] += boxes_R4[:, :2]
    masks = None
    if annotations and all("segmentation" in a for a in annotations):
        rles = [a["segmentation"] for a in annotations]
        masks = tuple(Rle(size=rle["size"], counts=rle["counts"]) for rle in rles)
    return Detections(
        file_name=image["file_name"],
        image_size=(image["height"], image["width"]),
        boxes_R4=boxes_R4.astype(np.float32),
        scores_R=np.array([a["score"] for a in annotations], dtype=np.float32),
        class_ids_R=np.array([class_ids[a["category_id"]] for a in annotations], dtype=np.int64),
        class_names=names,
        masks=masks,
    )


def write_coco(
    path: str | Path,
    results: Sequence[Detections],
    class_names: Sequence[str] | None = None,
) -> None:
    """Write :func:`to_coco_json` atomically; the folder must exist."""
    # ASCII escapes: also a file name that is no valid text survives
    text = json.dumps(to_coco_json(results, class_names), allow_nan=False)
    write_bytes(path, text.encode("ascii") + b"\n")


def read_coco(path: str | Path) -> list[Detections]:
    """Read a file of :func:`write_coco`.

    Raises:
        DatasetError: not JSON, or not such results.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}", where=printable(path)) from error
    except ValueError as error:
        raise DatasetError(f"not JSON: {error}", where=printable(path)) from error
    return from_coco_json(content)


def write_csv(path: str | Path, results: Sequence[Detections]) -> None:
    """Write one row per detection (:data:`CSV_COLUMNS`), atomically; the folder must exist.

    Coordinates have 3 decimals and scores 6; a picture without detections has no row. The file
    is UTF-8.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for result in results:
        for index, name in enumerate(result.names):
            score, box = result.scores_R[index], result.boxes_R4[index]
            writer.writerow(
                (
                    *(result.file_name, *result.image_size, result.class_ids_R[index], name),
                    *(f"{score:.6f}", *(f"{side:.3f}" for side in box)),
                )
            )
    write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _frozen(array: Any, dtype: Any) -> NDArray[Any]:
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy
