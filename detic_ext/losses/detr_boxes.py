"""Geometry of DETR's boxes: shares of the image, by centre and size.

Shapes: any leading dimensions; Q and N boxes. Source: DETR (Carion et al. 2020), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detic_ext.losses.box_regression import giou_loss

_PIXELS = 1000.0
"""GIoU does not change with scale, but what guards it against empty boxes is in square pixels."""


def to_corners(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) ``[..., 4]`` to XYXY in the same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """XYXY ``[..., 4]`` to (centre x, centre y, width, height) in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def matched_giou_loss(boxes_N4: Tensor, targets_N4: Tensor) -> Tensor:
    """``[N]``: 1 - generalised IoU of each box with its target, 0..2."""
    return giou_loss(to_corners(boxes_N4) * _PIXELS, to_corners(targets_N4) * _PIXELS)


def pairwise_giou_loss(boxes_Q4: Tensor, targets_N4: Tensor) -> Tensor:
    """``[Q, N]``: 1 - generalised IoU of every box with every target."""
    shape = (boxes_Q4.shape[0], targets_N4.shape[0])
    loss = matched_giou_loss(
        boxes_Q4[:, None].expand(*shape, 4).reshape(-1, 4),
        targets_N4[None].expand(*shape, 4).reshape(-1, 4),
    )
    return loss.view(shape)
