"""From a dataset dict to what the model takes: image tensor and instances.

Shapes: ``image`` is uint8 [3, H, W] in ``INPUT.FORMAT`` order; boxes XYXY in pixels of that image.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.utils.logger import log_first_n
from numpy.typing import NDArray

from ext_common.errors import ConfigError, DatasetError, ImageError
from ext_common.images import DEFAULT_MAX_PIXELS, printable, read_image
from ext_common.transforms import build_augmentations

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
Augmentations = Sequence[T.Augmentation | T.Transform]
ReadRecord = Callable[[Record], NDArray[np.uint8]]
"""Reads the image of a record that has no ``file_name``: uint8 [H, W, 3] in the image format."""


class DetectionMapper:
    """Reads, augments and converts one record (Detic specification 6.2).

    Args:
        is_train: training also makes ``instances`` and the kind of annotation.
        augmentations: one list per dataset, by ``dataset_source``; a single list serves all.
        image_format: channel order, "BGR" or "RGB".
        max_pixels: larger images are refused before decoding.
        mask_format: "polygon" or "bitmask"; None = no masks.
        recompute_boxes: take boxes from the masks again, for augmentations that cut objects.
        ann_types: kind of annotation per dataset, by ``dataset_source``; empty = the record's
            ``ann_type``, else "box".
        read_record: reads images that are not files.
        trust_files: an image of another size than its record says is taken as it is, and said so
            in the log; otherwise it is an error.
        max_instances: objects after the first so many are left out; 0 = no limit.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[Augmentations],
        image_format: str = "BGR",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        mask_format: str | None = None,
        recompute_boxes: bool = False,
        ann_types: Sequence[str] = (),
        read_record: ReadRecord | None = None,
        trust_files: bool = False,
        max_instances: int = 0,
    ) -> None:
        if mask_format not in (None, "polygon", "bitmask"):
            raise ConfigError(
                f"unknown mask format {mask_format!r}",
                where="INPUT.MASK_FORMAT",
                fix="polygon or bitmask",
            )
        if recompute_boxes and mask_format is None:
            raise ConfigError("boxes can be recomputed from masks only", fix="set MODEL.MASK_ON")
        self.is_train = is_train
        self.augmentations = [T.AugmentationList(list(steps)) for steps in augmentations]
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.mask_format = mask_format
        self.recompute_boxes = recompute_boxes
        self.ann_types = tuple(ann_types)
        self.read_record = read_record
        self.trust_files = trust_files
        self.max_instances = max_instances
        for source, steps in enumerate(augmentations):
            logger.info("augmentations %d (training %s): %s", source, is_train, steps)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool, augmentations: Sequence[Augmentations] | None = None
    ) -> dict[str, Any]:
        """Translate config keys; without ``augmentations`` one list serves all datasets."""
        # cutting comes with CUSTOM_AUG "" only, as build_augmentations has it
        cuts = is_train and cfg.INPUT.CROP.ENABLED and not cfg.INPUT.CUSTOM_AUG
        if cfg.MODEL.MASK_ON and (cuts or (is_train and cfg.INPUT.CUSTOM_AUG == "DETR")):
            _require_shapely(cfg)
        return {
            "is_train": is_train,
            "augmentations": augmentations or [build_augmentations(cfg, is_train)],
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "mask_format": cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
            "trust_files": cfg.INPUT.TRUST_FILES,
            "max_instances": cfg.INPUT.MAX_INSTANCES,
            "recompute_boxes": cuts and cfg.MODEL.MASK_ON,
        }

    def __call__(self, record: Record) -> dict[str, Any]:
        """Map one record; the record itself is not changed.

        Returns:
            The record's fields without ``annotations``; ``image``; in training ``instances``
            (``gt_boxes``, ``gt_classes`` and, with masks, ``gt_masks``; no crowds, nothing empty),
            ``ann_type``, ``dataset_source`` (default 0) and ``pos_category_ids`` (default empty).

        Raises:
            ImageError: the image cannot be read, or its size is not the recorded one.
            DatasetError: a record without an image.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}
        image_HWC = self._read(record)
        _check_size(record, image_HWC, trust_files=self.trust_files)
        sample["height"], sample["width"] = image_HWC.shape[:2]
        source = int(record.get("dataset_source", 0))
        steps = self.augmentations[source if len(self.augmentations) > 1 else 0]
        augmented = T.AugInput(image_HWC)
        transforms = steps(augmented)
        image_HWC = augmented.image
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))
        if not self.is_train:
            return sample
        sample["dataset_source"] = source
        sample["ann_type"] = (
            self.ann_types[source] if self.ann_types else record.get("ann_type", "box")
        )
        sample["pos_category_ids"] = list(record.get("pos_category_ids", ()))
        if "annotations" in record:
            size_hw = (image_HWC.shape[0], image_HWC.shape[1])
            sample["instances"] = self._instances(record["annotations"], transforms, size_hw)
        return sample

    def _read(self, record: Record) -> NDArray[np.uint8]:
        if "file_name" in record:
            return read_image(
                record["file_name"], format=self.image_format, max_pixels=self.max_pixels
            )
        if self.read_record is None:
            raise DatasetError(
                f"image {record.get('image_id')!r} has no file_name",
                fix="records with a tar_index need the tar files of their dataset",
            )
        return self.read_record(record)

    def _instances(
        self, annotations: Sequence[Record], transforms: T.TransformList, size_hw: tuple[int, int]
    ) -> Instances:
        moved = [
            transform_instance_annotations(self._own_copy(annotation), transforms, size_hw)
            for annotation in annotations
            if not annotation.get("iscrowd", 0)
        ]
        instances = annotations_to_instances(moved, size_hw, mask_format=self.mask_format)
        if self.mask_format is not None and not instances.has("gt_masks") and not moved:
            # so that the images of a batch have the same fields
            instances.gt_masks = (
                PolygonMasks([])
                if self.mask_format == "polygon"
                else BitMasks(torch.zeros((0, *size_hw), dtype=torch.bool))
            )
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances = filter_empty_instances(instances)
        return instances[: self.max_instances] if self.max_instances else instances

    def _own_copy(self, annotation: Record) -> dict[str, Any]:
        """What the transforms may change, and nothing that has no field in the instances."""
        copied = {key: annotation[key] for key in ("bbox_mode", "category_id")}
        # floats: transforms write into arrays of the given type, and would cut fractions off
        copied["bbox"] = [float(side) for side in annotation["bbox"]]
        if self.mask_format is not None and annotation.get("segmentation"):
            mask = annotation["segmentation"]
            copied["segmentation"] = (
                [np.array(polygon, dtype=np.float64) for polygon in mask]
                if isinstance(mask, list)
                else mask
            )
        return copied


def _require_shapely(cfg: CfgNode) -> None:
    """fvcore cuts polygons with a package that detectron2 does not ask for."""
    if importlib.util.find_spec("shapely") is None:
        key = "INPUT.CROP.ENABLED" if cfg.INPUT.CROP.ENABLED else "INPUT.CUSTOM_AUG DETR"
        raise ConfigError(
            "cutting images with polygon masks needs the package shapely",
            where=key,
            fix="pip install shapely, set MODEL.MASK_ON False, or use EfficientDetResizeCrop",
        )


def _check_size(record: Record, image_HWC: NDArray[np.uint8], *, trust_files: bool) -> None:
    height, width = image_HWC.shape[:2]
    recorded = (record.get("height", height), record.get("width", width))
    if recorded == (height, width):
        return
    what = (
        f"the image is {width} x {height} pixels, its record says "
        f"{recorded[1]} x {recorded[0]} (width x height)"
    )
    where = printable(str(record.get("file_name", record.get("image_id", ""))))
    if not trust_files:
        raise ImageError(
            what,
            where=where,
            fix="replace the file, correct width and height in the annotations, "
            "or set INPUT.TRUST_FILES True to go by the file",
        )
    log_first_n(logging.WARNING, f"{where}: {what}; going by the file", n=10, name=__name__)
