"""Softmax cross-entropy of regions over the classes and the background.

Shapes: R regions, K = C + 1 columns (background last). Source: Detic specification section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_ce_loss(
    logits_RK: Tensor, labels_R: Tensor, class_weight_K: Tensor | None = None
) -> Tensor:
    """Mean over regions, weighted by the weight of each region's own label.

    Args:
        logits_RK: background last.
        labels_R: int64, 0..C.
        class_weight_K: weight of regions by label, background included; None = 1.

    Returns:
        Scalar; 0 (still part of the graph) without regions, or if all of them weigh 0.
    """
    logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
    loss_R = F.cross_entropy(logits_RK, labels_R, reduction="none")
    if class_weight_K is None:
        return loss_R.sum() / max(labels_R.numel(), 1)
    weight_R = class_weight_K.to(loss_R.dtype)[labels_R]
    return (loss_R * weight_R).sum() / weight_R.sum().clamp(min=torch.finfo(loss_R.dtype).tiny)
