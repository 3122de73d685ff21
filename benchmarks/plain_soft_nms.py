"""Soft-NMS as the specification has it: one loop over the candidates of all classes (5.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


def plain_soft_nms(
    boxes_N4: Tensor, scores_N: Tensor, classes_N: Tensor, *, sigma: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Gaussian soft-NMS, pruned at 0.001; boxes of different classes do not overlap.

    Args:
        boxes_N4: XYXY.
        scores_N: of the candidates; stays as it is.
        classes_N: of the candidates.
        sigma: of the gaussian.

    Returns:
        int64 numbers of the candidates in the order in which they are taken, and their lowered
        scores.
    """
    left = torch.arange(len(scores_N), device=scores_N.device)
    scores_N = scores_N.clone()
    kept, lowered = [], []
    while len(left):
        best = int(scores_N[left].argmax())
        chosen = left[best]
        kept.append(chosen)
        lowered.append(scores_N[chosen].clone())
        iou = box_iou(boxes_N4[chosen][None], boxes_N4[left])[0]
        iou = iou * (classes_N[left] == classes_N[chosen])
        scores_N[left] = scores_N[left] * torch.exp(-(iou**2) / sigma)
        stays = scores_N[left] > 0.001
        stays[best] = False
        left = left[stays]
    if not kept:
        return left, scores_N
    return torch.stack(kept), torch.stack(lowered)
