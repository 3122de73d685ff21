"""From CenterNet's maps to boxes (specification section 1.2).

Shapes: N images, H and W cells of a level, K classes, T candidates kept of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from detic_ext.modeling.centernet.grid import level_grid
from detic_ext.modeling.centernet.options import DecodeOptions
from ext_common.nms import batched_nms_exact

_MIN_SIDE = 0.01  # pixels


@torch.no_grad()
def decode(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    factors: Sequence[Tensor] | None,
    strides: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    options: DecodeOptions,
    *,
    training: bool,
) -> list[Instances]:
    """Boxes of a batch.

    Args:
        boxes: per level distances [N, 4, H, W] in strides.
        scores: per level probabilities [N, K, H, W].
        factors: per level probabilities [N, 1, H, W] that multiply the scores of the candidates
            (class-agnostic heatmap of a detector that has both); None = none.
        strides: pixels per cell of each level.
        image_sizes: (height, width) of the images.
        options: thresholds and counts.
        training: which of the pairs in ``options`` applies.

    Returns:
        per image ``pred_boxes`` (not clipped), ``scores`` and ``pred_classes``, best first.
    """
    which = 0 if training else 1
    per_level = [
        _level_candidates(
            boxes[level],
            scores[level],
            None if factors is None else factors[level],
            stride,
            options,
            options.pre_topk[which],
        )
        for level, stride in enumerate(strides)
    ]
    results = []
    for image, size in enumerate(image_sizes):
        chosen = [tuple(part[image] for part in level) for level in per_level]
        boxes_T4, scores_T, classes_T, valid_T = (
            torch.cat([level[field] for level in chosen]) for field in range(4)
        )
        found = Instances(size)
        found.pred_boxes = Boxes(boxes_T4[valid_T])
        found.scores = scores_T[valid_T]
        found.pred_classes = classes_T[valid_T]
        results.append(
            _suppress(found, options, options.nms_threshold[which], options.post_topk[which])
        )
    return results


def peaks(heatmap_NKHW: Tensor) -> Tensor:
    """The heatmap with every cell that is not the greatest of its 3x3 neighbours set to 0."""
    greatest = F.max_pool2d(heatmap_NKHW, 3, stride=1, padding=1)
    return torch.where(heatmap_NKHW == greatest, heatmap_NKHW, 0.0)


def _level_candidates(
    boxes_N4HW: Tensor,
    scores_NKHW: Tensor,
    factors_N1HW: Tensor | None,
    stride: int,
    options: DecodeOptions,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best candidates of one level: boxes [N, T, 4], scores, classes and validity [N, T]."""
    num_images, num_classes, height, width = scores_NKHW.shape
    if options.center_nms:
        scores_NKHW = peaks(scores_NKHW)
    # candidate (cell, class) has number cell * K + class
    scores_NX = scores_NKHW.permute(0, 2, 3, 1).reshape(num_images, -1)
    ranked_NX = scores_NX
    if factors_N1HW is not None:
        factor_NX = factors_N1HW.reshape(num_images, -1, 1).expand(-1, -1, num_classes)
        ranked_NX = scores_NX * factor_NX.reshape(num_images, -1)
    # the threshold looks at the score before it is multiplied
    ranked_NX = ranked_NX.masked_fill(scores_NX <= options.score_threshold, -1.0)
    top_NT, index_NT = ranked_NX.topk(min(limit, ranked_NX.shape[1]), dim=1)
    cells_NT, classes_NT = index_NT // num_classes, index_NT % num_classes

    distances_NL4 = boxes_N4HW.permute(0, 2, 3, 1).reshape(num_images, -1, 4) * stride
    distances_NT4 = distances_NL4.gather(1, cells_NT[..., None].expand(-1, -1, 4))
    where_NT2 = level_grid((height, width), stride, boxes_N4HW.device)[cells_NT]
    low_NT2 = where_NT2 - distances_NT4[..., :2]
    high_NT2 = torch.maximum(where_NT2 + distances_NT4[..., 2:], low_NT2 + _MIN_SIDE)
    scores_NT = top_NT.clamp(min=0.0).sqrt() if options.sqrt_score else top_NT
    boxes_NT4 = torch.cat([low_NT2, high_NT2], dim=2)
    # a box that is not finite would read outside of the feature maps
    valid_NT = (top_NT >= 0) & torch.isfinite(boxes_NT4).all(dim=2)
    return boxes_NT4, scores_NT, classes_NT, valid_NT


def _suppress(
    found: Instances, options: DecodeOptions, nms_threshold: float, limit: int
) -> Instances:
    boxes_T4 = found.pred_boxes.tensor
    if options.box_nms and not options.center_nms:
        # not told the limit: scores equal to the last one kept stay too
        kept = batched_nms_exact(boxes_T4, found.scores, found.pred_classes, nms_threshold)
    else:
        kept = found.scores.argsort(descending=True)
    found = found[kept]
    if len(found) > limit:
        found = found[found.scores >= found.scores[limit - 1]]
    return found
