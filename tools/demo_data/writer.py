"""Writes the whole dataset: pictures, annotation files, registry, preview and manifest.

The folder::

    images/{base_train,oracle_train,val}/000001.jpg
    labels/<class name>/0001.jpg
    base_train.json  oracle_train.json  image_labels.json  val.json    LVIS v1 layout
    datasets.yaml                       names for DATASETS.REGISTRY
    preview.png  manifest.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from ext_common.errors import DatasetError

from .annotations import LvisFile
from .backgrounds import load_photographs
from .classes import BASE_CLASSES, CLASSES, NOVEL_CLASSES, DemoClass
from .manifest import MANIFEST_NAME, PARTS, Settings, write_manifest
from .paintings import paint
from .pictures import picture_rng, random_label_picture, random_scene
from .preview import write_preview

# fixed, so that the same picture is the same file; no chroma subsampling: colours are labels here
_JPEG_SETTINGS = (
    cv2.IMWRITE_JPEG_QUALITY,
    92,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)

Photographs = tuple[NDArray[np.uint8], ...]
Progress = Callable[[], object]


@dataclass(frozen=True)
class _Scenes:
    """One set of scenes.

    Attributes:
        place: number of the set in the seeds of its pictures; never reuse one.
        name: of its JSON file and image folder.
        classes: the classes that may appear.
        balanced: draw all classes equally often instead of long-tailed.
        description: for the JSON file.
    """

    place: int
    name: str
    classes: tuple[DemoClass, ...]
    balanced: bool
    description: str


_BASE_TRAIN = _Scenes(0, "base_train", BASE_CLASSES, False, "scenes with base classes only, boxes")
_ORACLE_TRAIN = _Scenes(1, "oracle_train", CLASSES, False, "scenes with all classes, boxes")
_VAL = _Scenes(2, "val", CLASSES, True, "validation scenes with all classes, boxes")
_LABELS_PLACE = 3


def picture_count(settings: Settings) -> int:
    """How many pictures :func:`write_dataset` makes, and how often it calls ``progress``."""
    return 2 * settings.train + settings.val + settings.labels


def write_dataset(folder: Path, settings: Settings, progress: Progress = lambda: None) -> None:
    """Make the dataset in a folder beside the wanted one, then put it in its place.

    An interrupted run therefore leaves an older dataset as it was.

    Args:
        folder: where to; a dataset that is there is replaced.
        settings: what to make.
        progress: called after each picture.

    Raises:
        DatasetError: the folder holds something else than a demo dataset.
    """
    if folder.exists() and not (folder / MANIFEST_NAME).is_file() and any(folder.iterdir()):
        raise DatasetError(
            "the folder is not empty and holds no demo dataset",
            where=str(folder),
            fix="choose another --output, or empty it",
        )
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    photographs = paint(settings.paintings, settings.seed) or load_photographs()
    for scenes, count in (
        (_BASE_TRAIN, settings.train),
        (_ORACLE_TRAIN, settings.train),
        (_VAL, settings.val),
    ):
        _write_scenes(unfinished, scenes, count, settings, photographs, progress)
    _write_labels(unfinished, settings, photographs, progress)
    registry = yaml.safe_dump(_registry(), sort_keys=False, default_flow_style=None, width=100)
    (unfinished / "datasets.yaml").write_text(registry, encoding="utf-8")
    write_preview(unfinished)
    write_manifest(unfinished, settings)
    _replace(folder, unfinished)


def _replace(folder: Path, finished: Path) -> None:
    """Move a finished dataset into its place; the manifest leaves first and comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in (MANIFEST_NAME, *PARTS):
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)
        else:
            (folder / part).unlink(missing_ok=True)
    for part in (*PARTS, MANIFEST_NAME):
        (finished / part).rename(folder / part)
    finished.rmdir()


def _write_scenes(
    folder: Path,
    scenes: _Scenes,
    count: int,
    settings: Settings,
    photographs: Photographs,
    progress: Progress,
) -> None:
    weights = [1.0 if scenes.balanced else kind.weight for kind in scenes.classes]
    records = LvisFile(asked=scenes.classes)
    for index in range(count):
        picture = random_scene(
            photographs,
            scenes.classes,
            weights,
            settings.size,
            picture_rng(settings.seed, scenes.place, index),
            validation=scenes is _VAL,
        )
        file_name = f"{scenes.name}/{index + 1:06d}.jpg"
        _write_jpeg(folder / "images" / file_name, picture.image_HW3)
        records.add_scene(file_name, picture.image_HW3.shape[:2], picture.objects)
        progress()
    _write_json(folder / f"{scenes.name}.json", records, scenes.description)


def _write_labels(
    folder: Path, settings: Settings, photographs: Photographs, progress: Progress
) -> None:
    records = LvisFile(asked=())
    shares = np.array_split(np.arange(settings.labels), len(CLASSES))
    for kind, share in zip(CLASSES, shares, strict=True):
        for index in range(len(share)):
            rng = picture_rng(settings.seed, _LABELS_PLACE, kind.id, index)
            picture = random_label_picture(photographs, kind, CLASSES, settings.size, rng)
            file_name = f"{kind.name}/{index + 1:04d}.jpg"
            _write_jpeg(folder / "labels" / file_name, picture.image_HW3)
            records.add_labelled(file_name, picture.image_HW3.shape[:2], kind.id)
            progress()
    _write_json(folder / "image_labels.json", records, "pictures with one class each, no boxes")


def _registry() -> dict[str, dict[str, dict[str, object]]]:
    def names(classes: Sequence[DemoClass]) -> list[str]:
        return [kind.name for kind in classes]

    def scenes(name: str) -> dict[str, object]:
        return {
            "type": "lvis",
            "images": "images",
            "json": f"{name}.json",
            "evaluator": "lvis",
            "groups": {"base": names(BASE_CLASSES), "novel": names(NOVEL_CLASSES)},
        }

    return {
        "datasets": {
            "demo_base_train": scenes("base_train"),
            "demo_oracle_train": scenes("oracle_train"),
            "demo_image_labels": {
                "type": "image_labels",
                "images": "labels",
                "json": "image_labels.json",
            },
            "demo_folders": {
                "type": "class_folders",
                "images": "labels",
                "classes_from": "demo_base_train",
            },
            "demo_val": scenes("val"),
        }
    }


def _write_jpeg(path: Path, image_HW3: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR)
    done, coded = cv2.imencode(".jpg", bgr_HW3, _JPEG_SETTINGS)
    assert done, "OpenCV always has a JPEG encoder"
    path.write_bytes(coded.tobytes())


def _write_json(path: Path, records: LvisFile, description: str) -> None:
    content = records.as_dict(f"detectron2-ext demo: {description}")
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
