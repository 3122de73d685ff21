"""Sigmoid cross-entropy of regions: one binary question per class, background answers no to all.

Shapes: R regions, K = C + 1 columns (background last), S sampled columns.
Source: Detic specification section 3 (USE_SIGMOID_CE, USE_FED_LOSS).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_ce_loss(
    logits_RK: Tensor, labels_R: Tensor, class_weight_C: Tensor | None = None
) -> Tensor:
    """Sum over classes, mean over regions; the background column is not used.

    Args:
        logits_RK: background last.
        labels_R: int64, 0..C, C is background.
        class_weight_C: factor per class; None = 1.

    Returns:
        Scalar; 0 (still part of the graph) without regions.
    """
    classes_C = torch.arange(logits_RK.shape[1] - 1, device=logits_RK.device)
    return sampled_sigmoid_ce_loss(logits_RK[:, :-1], labels_R, classes_C, class_weight_C)


def sampled_sigmoid_ce_loss(
    logits_RS: Tensor, labels_R: Tensor, columns_S: Tensor, weight_S: Tensor | None = None
) -> Tensor:
    """The same loss from the logits of a few columns: what the others would add has weight 0.

    Args:
        logits_RS: logits of the columns ``columns_S``.
        labels_R: int64, 0..C; a label outside ``columns_S`` is negative everywhere.
        columns_S: int64 class numbers without repeats.
        weight_S: factor per column; None = 1.

    Returns:
        Scalar; 0 (still part of the graph) without regions.
    """
    logits_RS = logits_RS.to(torch.promote_types(logits_RS.dtype, torch.float32))
    target_RS = (labels_R[:, None] == columns_S[None, :]).to(logits_RS.dtype)
    weight_S = None if weight_S is None else weight_S.to(logits_RS.dtype)
    total = F.binary_cross_entropy_with_logits(logits_RS, target_RS, weight_S, reduction="sum")
    return total / max(labels_R.numel(), 1)
