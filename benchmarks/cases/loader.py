"""Reading training samples in one process: detectron2's mapper and ours, from files and from a tar.

A call reads :data:`IMAGES` pictures, so images per second and core are that number over the time.
``naive, tar`` is what one writes first: Python's ``tarfile`` in front of detectron2's mapper. The
archive and its index are open before; a run opens them once.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.structures import BoxMode
from PIL import Image, ImageOps

from benchmarks.case import Case, Problem, Results, Variant
from ext_common.data.batching import Ticket
from ext_common.data.fetching import SampleFetcher
from ext_common.data.mapper import DetectionMapper
from ext_common.data.training_records import packed
from ext_common.tar_shards import TarDataset, TarRecordReader

IMAGES = 16
BOXES = 8


def build(device: torch.device, *, height: int, width: int, short_edge: int) -> Problem:
    """Write pictures and an archive of them.

    Args:
        device: not used.
        height, width: of the pictures, pixels.
        short_edge: what they are resized to.
    """
    folder = tempfile.TemporaryDirectory(prefix="loader-")
    root = Path(folder.name)
    draw = np.random.default_rng(0)
    records = [_record(root, number, height, width, draw) for number in range(IMAGES)]
    with tarfile.open(root / "shard.tar", "w") as tar:
        for record in records:
            tar.add(record["file_name"], Path(record["file_name"]).name)
    in_tar = [
        {key: value for key, value in record.items() if key != "file_name"} | {"tar_index": number}
        for number, record in enumerate(records)
    ]
    steps = [T.ResizeShortestEdge(short_edge, 4 * short_edge, "choice")]
    shard = TarDataset([root / "shard.tar"], image_format="BGR")
    theirs = DatasetMapper(is_train=True, augmentations=steps, image_format="BGR")
    own = DetectionMapper(is_train=True, augmentations=[steps])
    own_tar = DetectionMapper(
        is_train=True, augmentations=[steps], read_record=TarRecordReader(shard)
    )
    plain = packed(records)
    files = SampleFetcher(packed(records), own, seed=0)
    archive = SampleFetcher(packed(in_tar), own_tar, seed=0)
    plain_tar = _from_tarfile(root / "shard.tar", theirs)

    def run(read: Callable[[int], Any]) -> Results:
        # the folder is there as long as this function
        samples = [read(number) for number in range(len(records)) if folder]
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "boxes": torch.cat([sample["instances"].gt_boxes.tensor for sample in samples]),
            "classes": torch.cat([sample["instances"].gt_classes for sample in samples]),
        }

    return Problem(
        {
            "ours": partial(run, lambda number: files[Ticket(number, number)]),
            "ours, tar": partial(run, lambda number: archive[Ticket(number, number)]),
            "naive": partial(run, lambda number: theirs(plain[number])),
            "naive, tar": partial(run, lambda number: plain_tar(plain[number])),
        }
    )


def _from_tarfile(path: Path, mapper: DatasetMapper) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """detectron2's mapper on the members of an archive."""
    archive = tarfile.open(path)  # noqa: SIM115 - read from until the end
    members = archive.getmembers()

    def read(record: dict[str, Any]) -> dict[str, Any]:
        content = archive.extractfile(members[record["image_id"]])
        augmented = T.AugInput(
            convert_PIL_to_numpy(ImageOps.exif_transpose(Image.open(content)), "BGR")
        )
        transforms = mapper.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        mapper._transform_annotations(record, transforms, augmented.image.shape[:2])
        return record

    return read


def _record(
    root: Path, number: int, height: int, width: int, draw: np.random.Generator
) -> dict[str, Any]:
    """A picture with the detail of a photo, and its dataset dict."""
    coarse = draw.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = draw.integers(-12, 13, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    path = root / f"{number}.jpg"
    Image.fromarray(noisy).save(path, quality=90)
    annotations = [
        {
            "bbox": [float(number + place), 3.0 * place, 30.0, 40.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": place,
        }
        for place in range(BOXES)
    ]
    return {
        "file_name": str(path),
        "height": height,
        "width": width,
        "image_id": number,
        "annotations": annotations,
    }


CASE = Case(
    name="loader",
    what=f"read {IMAGES} training samples: detectron2's mapper or ours, files or tar",
    variants=(
        Variant("480x640", partial(build, height=480, width=640, short_edge=640)),
        Variant("480x640 to 320", partial(build, height=480, width=640, short_edge=320)),
    ),
    tiny=Variant("tiny", partial(build, height=48, width=64, short_edge=40)),
)
