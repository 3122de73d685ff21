"""Class probabilities joined with the RPN's objectness (specification 5.1).

Legend: R regions, K columns of the probabilities.
"""

from __future__ import annotations

from torch import Tensor


def fuse_objectness(probs_RK: Tensor, logits_R: Tensor, *, sigmoid: bool = False) -> Tensor:
    """Geometric mean of class probability and objectness, ``[R, K]``.

    Args:
        probs_RK: class probabilities.
        logits_R: raw objectness logits of the regions.
        sigmoid: take the objectness score. Otherwise the raw logit, with which the published
            numbers were made: scores may exceed 1, and regions with a negative logit become NaN and
            are dropped by whoever wants finite rows (pitfall 11.4).
    """
    objectness_R = logits_R.sigmoid() if sigmoid else logits_R
    return (probs_RK * objectness_R.to(probs_RK.dtype)[:, None]).sqrt()
