"""Class-balanced losses: classes weigh by their effective number of examples (spec 5).

Cui et al. 2019. Shape suffixes: R regions, C classes, K = C + 1 (the last one is background).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError

REDUCTIONS = ("mean", "weighted_mean", "sum", "none")


def effective_numbers(counts_C: Tensor, beta: float) -> Tensor:
    """float64 [C]: ``(1 - beta^n) / (1 - beta)``.

    Args:
        counts_C: examples per class; a class without any counts as one example.
        beta: 0 <= beta < 1; 0 weighs all classes alike.

    Raises:
        ConfigError: another beta, or negative counts.
    """
    if not 0 <= beta < 1:
        raise ConfigError(
            f"{beta} is not in [0, 1)",
            where="MODEL.CLASSIFIER_STAGE2.BETA",
            fix="0.9, 0.99, 0.999 or 0.9999",
        )
    # float32 cancels: 1 - 0.9999 has four digits left
    counts_C = counts_C.to(torch.float64)
    if counts_C.numel() == 0 or bool((counts_C < 0).any()):
        raise ConfigError(
            f"{counts_C.numel()} class counts, smallest {counts_C.min().item()}"
            if counts_C.numel()
            else "no class counts"
        )
    return (1 - beta ** counts_C.clamp(min=1)) / (1 - beta)


def class_balanced_weights(counts_C: Tensor, beta: float, *, normalise: bool = True) -> Tensor:
    """float64 [C]: inverse effective numbers, scaled to a mean of 1 over the classes.

    Args:
        counts_C, beta: see :func:`effective_numbers`.
        normalise: scale.
    """
    weights_C = 1 / effective_numbers(counts_C, beta)
    return weights_C * (len(weights_C) / weights_C.sum()) if normalise else weights_C


class _Weighted(nn.Module):
    """Per-region losses times the weight of the region's class; background weighs 1."""

    weights_K: Tensor

    def __init__(self, weights_C: Tensor | Sequence[float], reduction: str) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ConfigError(
                f"unknown reduction {reduction!r}",
                where="MODEL.CLASSIFIER_STAGE2.REDUCTION",
                fix=f"one of {', '.join(REDUCTIONS)}",
            )
        weights_C = torch.as_tensor(weights_C, dtype=torch.float64)
        weights_K = torch.cat([weights_C, weights_C.new_ones(1)]).float()
        self.register_buffer("weights_K", weights_K, persistent=False)
        self.reduction = reduction

    def _reduce(self, losses_R: Tensor, weights_R: Tensor) -> Tensor:
        losses_R = losses_R * weights_R
        if self.reduction == "none":
            return losses_R
        if self.reduction == "sum":
            return losses_R.sum()
        if self.reduction == "mean":
            return losses_R.sum() / max(losses_R.numel(), 1)
        return losses_R.sum() / weights_R.sum().clamp(min=1e-12)


class ClassBalancedSoftmax(_Weighted):
    """Softmax cross-entropy over classes and background.

    Args:
        weights_C: of the classes; background weighs 1.
        reduction: ``mean`` divides by the number of regions (TensorFlow), ``weighted_mean`` by the
            sum of their weights (torch's ``weight=``); ``sum``; ``none`` gives [R].
    """

    def __init__(self, weights_C: Tensor | Sequence[float], reduction: str = "mean") -> None:
        super().__init__(weights_C, reduction)

    def forward(self, logits_RK: Tensor, labels_R: Tensor) -> Tensor:
        """Loss of regions with labels 0..C (C = background)."""
        losses_R = F.cross_entropy(logits_RK, labels_R, reduction="none")
        return self._reduce(losses_R, self.weights_K[labels_R])


class ClassBalancedSigmoid(_Weighted):
    """Binary cross-entropy of every class, summed over the classes, with an optional focus.

    Args:
        weights_C: of the classes; background weighs 1.
        reduction: as in :class:`ClassBalancedSoftmax`; ``positive_mean`` is left to the caller,
            which divides a ``sum`` by the number of foreground regions.
        gamma: exponent of the focal factor ``(1 - p_target)^gamma``; 0 = none.
    """

    def __init__(
        self,
        weights_C: Tensor | Sequence[float],
        reduction: str = "mean",
        *,
        gamma: float = 0.0,
    ) -> None:
        super().__init__(weights_C, reduction)
        self.gamma = gamma

    def forward(self, logits_RC: Tensor, labels_R: Tensor) -> Tensor:
        """Loss of regions with labels 0..C; background has no positive class."""
        num_classes = logits_RC.shape[1]
        target_RC = F.one_hot(labels_R, num_classes + 1)[:, :-1].to(logits_RC.dtype)
        losses_RC = F.binary_cross_entropy_with_logits(logits_RC, target_RC, reduction="none")
        if self.gamma:
            # of the wrong answer, without leaving the logarithmic domain
            wrong_RC = torch.where(target_RC > 0, -logits_RC, logits_RC)
            losses_RC = losses_RC * (self.gamma * F.logsigmoid(wrong_RC)).exp()
        return self._reduce(losses_RC.sum(dim=1), self.weights_K[labels_R])
