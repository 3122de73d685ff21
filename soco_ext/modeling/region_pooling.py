"""RoIAlign of normalised boxes (specification 3.1).

Boxes are multiplied by the size of the map itself, so that the stride of a level follows from the
view: 28 for P5 of a view of 112 pixels.

Shapes: N images, K boxes per image, R regions of all images, C channels, H x W the map, S side of a pooled region; boxes are
XYXY as shares of the view, [N, K, 4 or 5] (a fifth column, the id, is not read).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def map_rois(boxes_NK5: Tensor, height: int, width: int) -> Tensor:
    """Boxes of a batch in pixels of a map: [N * K, 5] with the image's index first."""
    images, count = boxes_NK5.shape[:2]
    scale_4 = boxes_NK5.new_tensor([width, height, width, height])
    corners = (boxes_NK5[..., :4] * scale_4).reshape(-1, 4)
    index = torch.arange(images, device=boxes_NK5.device, dtype=boxes_NK5.dtype)
    return torch.cat([index.repeat_interleave(count)[:, None], corners], dim=1)


def pool_regions(
    map_NCHW: Tensor, rois_R5: Tensor, size: int = 7, *, aligned: bool = True
) -> Tensor:
    """Pool regions from one map, adaptively sampled: [R, C, S, S].

    Args:
        map_NCHW: converted to the dtype of the boxes, as the original does.
        rois_R5: image's index and box in pixels of the map.
        size: S.
        aligned: the half-pixel rule.
    """
    with torch.autocast(map_NCHW.device.type, enabled=False):
        pooled: Tensor = roi_align(
            map_NCHW.to(rois_R5.dtype), rois_R5, (size, size), 1.0, -1, aligned=aligned
        )
    return pooled
