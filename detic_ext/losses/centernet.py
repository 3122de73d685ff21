"""Heatmap and box losses of CenterNet (specification section 1.2; Zhou et al. 2019, eq. 1).

Shapes: M cells of a batch, K heatmap channels, P positives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ext_common.errors import ConfigError

LOCATION_LOSSES = ("giou", "iou", "linear_iou")


def heatmap_focal_loss(
    logits_MK: Tensor,
    heatmap_MK: Tensor,
    positives_P: Tensor,
    channels_P: Tensor,
    *,
    alpha: float = 0.25,
    beta: float = 4.0,
    gamma: float = 2.0,
    clamp: float = 1e-4,
    ignore_high_fp: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """Penalty-reduced focal loss, as sums that the caller normalises.

    Args:
        logits_MK: predicted heatmaps.
        heatmap_MK: wanted heatmaps, 0 to 1.
        positives_P: int64 cells with a box centre; repeats count again.
        channels_P: int64 channel of each.
        alpha: weight of positives, 1 - alpha of negatives.
        beta: exponent of (1 - heatmap) that spares negatives near a centre.
        gamma: exponent of the error.
        clamp: scores are kept this far from 0 and 1.
        ignore_high_fp: negatives that score at least this are left out; not positive = none.

    Returns:
        positive and negative part, scalars.
    """
    scores_MK = logits_MK.sigmoid().clamp(min=clamp, max=1 - clamp)
    chosen_P = scores_MK[positives_P, channels_P]
    positive = -(chosen_P.log() * (1 - chosen_P).pow(gamma)).sum() * alpha
    negative_MK = (1 - scores_MK).log() * scores_MK.pow(gamma) * (1 - heatmap_MK).pow(beta)
    if ignore_high_fp > 0:
        negative_MK = negative_MK * (scores_MK < ignore_high_fp)
    return positive, -negative_MK.sum() * (1 - alpha)


def location_loss(predicted: Tensor, wanted: Tensor, kind: str = "giou") -> Tensor:
    """Overlap loss of boxes given as distances from one point, not reduced.

    Args:
        predicted: left, top, right, bottom in any unit, not negative, [..., 4].
        wanted: the same of the target.
        kind: ``giou`` = 1 - GIoU, ``iou`` = -ln IoU, ``linear_iou`` = 1 - IoU.

    Returns:
        [...]; IoU is (I + 1) / (U + 1), GIoU = IoU - (C - U) / C with the enclosing area C.

    Raises:
        ConfigError: unknown kind.
    """
    if kind not in LOCATION_LOSSES:
        raise ConfigError(
            f"unknown box loss {kind!r}",
            where="MODEL.CENTERNET.LOC_LOSS_TYPE",
            fix=f"one of {', '.join(LOCATION_LOSSES)}",
        )
    smaller, larger = torch.minimum(predicted, wanted), torch.maximum(predicted, wanted)
    overlap = _area(smaller)
    union = _area(predicted) + _area(wanted) - overlap
    iou = (overlap + 1) / (union + 1)
    if kind == "iou":
        return -iou.log()
    if kind == "linear_iou":
        return 1 - iou
    enclosing = _area(larger)
    return 1 - (iou - (enclosing - union) / enclosing)


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=-1)
    return (left + right) * (top + bottom)
