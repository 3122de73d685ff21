"""Classification losses of the transfer recipes (specification 4.4).

Legend: R regions, K columns of the logits, the background last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RegionClassificationLoss(nn.Module):
    """Cross-entropy with a weight for background regions, and focal scaling.

    With ``gamma`` the loss is the plain mean of ``w * CE * (1 - p)^gamma``; without it, the mean of
    ``w * CE`` is divided by the sum of the weights: two normalisations, as published (pitfall 11.5).
    Everything is computed from ``m = logsumexp of the other logits - logit of the label``, so that
    ``CE = softplus(m)`` and ``log(1 - p) = -softplus(-m)``: where p rounds to 1 the published form
    has NaN gradients (pitfalls 4.4 and 11.22), this one the correct limit, 0.

    Args:
        gamma: exponent of the focal factor; None = no factor.
        background_weight: w of regions whose label is the background; None = 1.
    """

    def __init__(
        self, *, gamma: float | None = None, background_weight: float | None = None
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.background_weight = background_weight

    def forward(self, logits_RK: Tensor, labels_R: Tensor) -> Tensor:
        """Scalar, float32 or wider; 0 without regions, and where all weights are 0.

        Args:
            logits_RK: background last; K >= 2.
            labels_R: int64, 0 to K - 1.
        """
        logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
        if len(labels_R) == 0:
            return logits_RK.sum()
        margin_R = _margin(logits_RK, labels_R)
        loss_R = F.softplus(margin_R)
        weight_R = self._weights(logits_RK, labels_R)
        if self.gamma is not None:
            loss_R = loss_R * torch.exp(-self.gamma * F.softplus(-margin_R))
            return (loss_R * weight_R).mean()
        total = weight_R.sum()  # 0 where all regions are background of weight 0
        return (loss_R * weight_R).sum() / torch.where(total > 0, total, torch.ones_like(total))

    def _weights(self, logits_RK: Tensor, labels_R: Tensor) -> Tensor:
        ones_R = torch.ones_like(logits_RK[:, 0])
        if self.background_weight is None:
            return ones_R
        background_R = labels_R == logits_RK.shape[1] - 1
        return torch.where(background_R, self.background_weight * ones_R, ones_R)


def _margin(logits_RK: Tensor, labels_R: Tensor) -> Tensor:
    """Log-sum-exp of all logits but the label's, minus the label's."""
    labels_R1 = labels_R[:, None]
    others_RK = logits_RK.scatter(1, labels_R1, float("-inf"))
    return others_RK.logsumexp(dim=1) - logits_RK.gather(1, labels_R1)[:, 0]
