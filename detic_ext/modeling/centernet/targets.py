"""What each cell of the pyramid should answer (specification section 1.2).

Shapes: B boxes and L locations of one image; N images; M = N * L locations of a batch in the order
level, image, row, column; P positives; K heatmap channels. Boxes are XYXY in absolute pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detic_ext.modeling.centernet.grid import batch_order, level_grid
from detic_ext.modeling.centernet.options import TargetOptions

NO_BOX = -1e8  # regression target of cells without a box, before division by the stride
_FAINT = 1e-4  # heatmap values below this are 0


@dataclass(frozen=True)
class CenterNetTargets:
    """Targets of a batch.

    Attributes:
        positives_P: int64 cells (of M) that hold a box centre; two boxes in a cell count twice.
        labels_P: int64 class of each.
        distances_M4: left, top, right, bottom in strides; negative where no box is regressed.
        heatmap_MK: 0 to 1.
    """

    positives_P: Tensor
    labels_P: Tensor
    distances_M4: Tensor
    heatmap_MK: Tensor


def make_targets(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    options: TargetOptions,
    num_channels: int | None = None,
) -> CenterNetTargets:
    """Targets of a batch.

    Args:
        boxes: per image [B, 4].
        classes: per image int64 [B].
        shapes: (rows, columns) of each level.
        options: levels and radii.
        num_channels: K, one heatmap per class; None = one heatmap for all classes.
    """
    device = boxes[0].device
    counts = [height * width for height, width in shapes]
    locations_L2, strides_L = locations(shapes, options.strides, device)
    per_image = [
        _image_targets(b, c, locations_L2, strides_L, counts, options, num_channels)
        for b, c in zip(boxes, classes, strict=True)
    ]
    positives_P, labels_P = positive_cells(boxes, classes, shapes, options)
    return CenterNetTargets(
        positives_P=positives_P,
        labels_P=labels_P,
        distances_M4=batch_order([distances for distances, _ in per_image], counts),
        heatmap_MK=batch_order([heatmap for _, heatmap in per_image], counts),
    )


def locations(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cell centres (x, y) [L, 2] of all levels and the stride [L] of each."""
    grids = [
        level_grid(shape, stride, device) for shape, stride in zip(shapes, strides, strict=True)
    ]
    strides_L = torch.cat(
        [grid.new_full((len(grid),), stride) for grid, stride in zip(grids, strides, strict=True)]
    )
    return torch.cat(grids), strides_L


def _image_targets(
    boxes_B4: Tensor,
    classes_B: Tensor,
    locations_L2: Tensor,
    strides_L: Tensor,
    counts: Sequence[int],
    options: TargetOptions,
    num_channels: int | None,
) -> tuple[Tensor, Tensor]:
    """Distances [L, 4] in strides and heatmap [L, K] of one image."""
    num = len(locations_L2)
    if len(boxes_B4) == 0:
        empty = locations_L2.new_full((num, 4), NO_BOX) / strides_L[:, None]
        return empty, locations_L2.new_zeros((num, num_channels or 1))
    centres_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2
    stride_L1 = strides_L[:, None, None]
    # the centre of the cell that holds the box centre, on each level
    cell_LB2 = (centres_B2[None] / stride_L1).floor() * stride_L1 + stride_L1 / 2
    offset_LB2 = (locations_L2[:, None] - cell_LB2).abs()
    at_peak_LB = (offset_LB2 == 0).all(dim=2)
    squared_LB = (locations_L2[:, None] - centres_B2[None]).square().sum(dim=2)
    weighted_LB = squared_LB.masked_fill(at_peak_LB, 0.0) / _squared_radius(boxes_B4, options)

    distances_LB4 = torch.cat(
        [
            locations_L2[:, None] - boxes_B4[None, :, :2],
            boxes_B4[None, :, 2:] - locations_L2[:, None],
        ],
        dim=2,
    )
    usable_LB = (offset_LB2 <= stride_L1).all(dim=2) & (distances_LB4.amin(dim=2) > 0)
    usable_LB &= (
        responsible_levels(boxes_B4, options)
        .repeat_interleave(torch.tensor(counts, device=boxes_B4.device), dim=1)
        .t()
    )
    cost_LB = weighted_LB.masked_fill(~usable_LB, torch.inf)
    best_L = cost_LB.argmin(dim=1)
    chosen_L4 = distances_LB4[torch.arange(num, device=best_L.device), best_L]
    chosen_L4 = torch.where(usable_LB.any(dim=1)[:, None], chosen_L4, NO_BOX)
    return chosen_L4 / strides_L[:, None], _heatmap(weighted_LB, classes_B, num_channels)


def _heatmap(weighted_LB: Tensor, classes_B: Tensor, num_channels: int | None) -> Tensor:
    if num_channels is None:
        nearest_LK = weighted_LB.amin(dim=1, keepdim=True)
    else:
        nearest_LK = weighted_LB.new_full((len(weighted_LB), num_channels), torch.inf)
        index = classes_B[None].expand(len(weighted_LB), -1)
        nearest_LK = nearest_LK.scatter_reduce(1, index, weighted_LB, reduce="amin")
    heatmap_LK = (-nearest_LK).exp()
    return heatmap_LK.masked_fill(heatmap_LK < _FAINT, 0.0)


def _squared_radius(boxes_B4: Tensor, options: TargetOptions) -> Tensor:
    """[B]: 2 delta^2 area, at least the least radius squared."""
    delta = (1 - options.min_overlap) / (1 + options.min_overlap)
    size_B2 = boxes_B4[:, 2:] - boxes_B4[:, :2]
    return (2 * delta**2 * size_B2.prod(dim=1)).clamp(min=options.min_radius**2)


def responsible_levels(boxes_B4: Tensor, options: TargetOptions) -> Tensor:
    """bool [B, levels]: the box' half diagonal is in the level's range."""
    diagonal_B1 = (boxes_B4[:, 2:] - boxes_B4[:, :2]).square().sum(dim=1, keepdim=True).sqrt() / 2
    low, high = boxes_B4.new_tensor(options.sizes).unbind(dim=1)
    return (diagonal_B1 >= low) & (diagonal_B1 <= high)


def positive_cells(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    options: TargetOptions,
) -> tuple[Tensor, Tensor]:
    """The cells that hold the centres of the boxes their level is responsible for.

    Returns:
        ``positives_P`` and ``labels_P``, see :class:`CenterNetTargets`.
    """
    counts = [height * width for height, width in shapes]
    device = boxes[0].device
    num_images = len(boxes)
    strides = torch.tensor(options.strides, device=device, dtype=torch.float32)
    widths = torch.tensor([width for _, width in shapes], device=device)
    starts = torch.tensor(
        [num_images * sum(counts[:level]) for level in range(len(counts))], device=device
    )
    sizes = torch.tensor(counts, device=device)
    cells, labels = [], []
    for image, (boxes_B4, classes_B) in enumerate(zip(boxes, classes, strict=True)):
        centres_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2
        cell_BV2 = (centres_B2[:, None] / strides[None, :, None]).long()
        index_BV = starts + image * sizes + cell_BV2[..., 1] * widths + cell_BV2[..., 0]
        accepted_BV = responsible_levels(boxes_B4, options)
        cells.append(index_BV[accepted_BV])
        labels.append(classes_B[:, None].expand_as(index_BV)[accepted_BV])
    return torch.cat(cells), torch.cat(labels)
