"""Annotations of a batch as the losses take them, checked before they leave the host.

Shapes: N annotated boxes of all images, image after image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detic_ext.losses.detr_boxes import to_centres
from detic_ext.losses.detr_data import DetrTargets
from detic_ext.losses.image_label_batch import host_to_device
from ext_common.errors import DatasetError


def build_targets(
    batched_inputs: Sequence[Mapping[str, Any]], num_classes: int, device: torch.device
) -> DetrTargets:
    """Boxes as shares of the images, which are those after augmentation and before padding.

    Args:
        batched_inputs: with ``instances`` (``gt_boxes`` XYXY in pixels, ``gt_classes``) on the
            host.
        num_classes: C.
        device: of the result; nothing waits for it.

    Raises:
        DatasetError: a box that is not finite or has no area, or a class outside of 0..C-1.
    """
    boxes, labels = [], []
    for item in batched_inputs:
        instances = item["instances"]
        height, width = instances.image_size
        boxes_N4 = instances.gt_boxes.tensor.float()
        _check(boxes_N4, instances.gt_classes, num_classes, item)
        boxes.append(to_centres(boxes_N4 / boxes_N4.new_tensor([width, height, width, height])))
        labels.append(instances.gt_classes.long())
    labels_N = torch.cat(labels)
    return DetrTargets(
        labels_N=host_to_device(labels_N, device),
        boxes_N4=host_to_device(torch.cat(boxes), device),
        counts=tuple(len(image) for image in labels),
        num_distinct=len(labels_N.unique()),
    )


def no_targets(num_images: int, device: torch.device) -> DetrTargets:
    """What the boxes of images without annotated boxes are trained with: nothing is there."""
    return DetrTargets(
        labels_N=torch.zeros(0, dtype=torch.int64, device=device),
        boxes_N4=torch.zeros(0, 4, device=device),
        counts=(0,) * num_images,
        num_distinct=0,
    )


def _check(boxes_N4: Tensor, labels_N: Tensor, num_classes: int, item: Mapping[str, Any]) -> None:
    where = f"image {item.get('image_id', item.get('file_name', '?'))}"
    proper_N = boxes_N4.isfinite().all(dim=1) & (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)
    if not bool(proper_N.all()):
        wrong = boxes_N4[~proper_N][0].tolist()
        raise DatasetError(
            f"box {wrong} (x1, y1, x2, y2) is not finite or has no area",
            where=where,
            fix="correct or remove the annotation",
        )
    known_N = (labels_N >= 0) & (labels_N < num_classes)
    if not bool(known_N.all()):
        raise DatasetError(
            f"class {int(labels_N[~known_N][0])}, the model has {num_classes} classes",
            where=where,
            fix="set MODEL.DETR.NUM_CLASSES to the number of the dataset's classes",
        )
