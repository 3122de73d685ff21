"""MORE_POS: good cells around a centre become positives too (specification section 1.2).

Shapes: B boxes of one image, V levels, 9 cells around a centre; M locations of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detic_ext.modeling.centernet.options import TargetOptions
from detic_ext.modeling.centernet.targets import responsible_levels


@torch.no_grad()
def more_positive_cells(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    predicted_M4: Tensor,
    location_loss: Callable[[Tensor, Tensor], Tensor],
    options: TargetOptions,
) -> tuple[Tensor, Tensor]:
    """Cells whose predicted box fits, at most ``more_count`` per box.

    Args:
        boxes: per image [B, 4] pixels.
        classes: per image int64 [B].
        shapes: (rows, columns) of each level.
        predicted_M4: left, top, right, bottom in strides.
        location_loss: of predicted and wanted distances [..., 4], not reduced.
        options: threshold and count.

    Returns:
        int64 cells (of M) and their classes.
    """
    device = predicted_M4.device
    counts = [height * width for height, width in shapes]
    starts = torch.tensor(
        [len(boxes) * sum(counts[:level]) for level in range(len(counts))], device=device
    )
    sizes = torch.tensor(counts, device=device)
    heights, widths = torch.tensor(shapes, device=device).unbind(dim=1)
    strides_V = torch.tensor(options.strides, device=device, dtype=torch.float32)
    around_92 = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(device)
    cells, labels = [], []
    for image, (boxes_B4, classes_B) in enumerate(zip(boxes, classes, strict=True)):
        if len(boxes_B4) == 0:
            continue
        centres_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2
        cell_BV2 = (centres_B2[:, None] / strides_V[None, :, None]).long()
        cell_BV92 = cell_BV2[:, :, None] + around_92
        x_BV9, y_BV9 = cell_BV92.unbind(dim=-1)
        inside = (x_BV9 >= 0) & (y_BV9 >= 0)
        inside &= (x_BV9 < widths[:, None]) & (y_BV9 < heights[:, None])
        index_BV9 = (starts + image * sizes)[:, None] + y_BV9 * widths[:, None] + x_BV9
        where_BV92 = cell_BV92 * strides_V[:, None, None] + (strides_V // 2)[:, None, None]
        wanted = torch.cat(
            [
                where_BV92 - boxes_B4[:, None, None, :2],
                boxes_B4[:, None, None, 2:] - where_BV92,
            ],
            dim=-1,
        )
        wanted = wanted / strides_V[:, None, None]
        valid = inside & (wanted.amin(dim=-1) >= 0)
        predicted = predicted_M4[index_BV9.clamp(0, len(predicted_M4) - 1)]
        loss_BV9 = location_loss(predicted, wanted).masked_fill(~valid, torch.inf)
        centre_BV9 = torch.zeros_like(valid)
        centre_BV9[:, :, 4] = responsible_levels(boxes_B4, options)
        # the place of a centre's cell may lie beside a thin box, and is none then either
        loss_BV9 = loss_BV9.masked_fill(centre_BV9 & valid, 0.0)
        kth_B = loss_BV9.flatten(1).kthvalue(min(options.more_count, loss_BV9[0].numel())).values
        limit_B = kth_B.clamp(max=options.more_threshold)
        chosen = loss_BV9 < limit_B[:, None, None]
        cells.append(index_BV9[chosen])
        labels.append(classes_B[:, None, None].expand_as(index_BV9)[chosen])
    empty = torch.zeros(0, dtype=torch.long, device=device)
    return torch.cat([empty, *cells]), torch.cat([empty, *labels])
