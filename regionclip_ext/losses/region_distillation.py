"""Region distillation: the student's concept distribution follows the teacher's.

Shapes: R regions, C concepts. Source: RegionCLIP specification 3.3, pitfall 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def region_distillation_loss(logits_RC: Tensor, teacher_probs_RC: Tensor, kept_R: Tensor) -> Tensor:
    """KL divergence from teacher to student, mean over the kept regions.

    Written with ``log_softmax``: the original's ``log(softmax)`` is NaN as soon as a probability
    underflows (a cosine gap of about 1 at temperature 0.01).

    Args:
        logits_RC: of the student, cosine / temperature.
        teacher_probs_RC: rows sum to 1; constants.
        kept_R: bool; the regions that count.

    Returns:
        Scalar; 0 and still part of the graph where no region is kept.
    """
    log_probs_RC = F.log_softmax(logits_RC, dim=1)
    # xlogy: a teacher's probability of exactly 0 adds 0
    entropy_R = torch.xlogy(teacher_probs_RC, teacher_probs_RC).sum(dim=1)
    divergence_R = entropy_R - (teacher_probs_RC * log_probs_RC).sum(dim=1)
    return (divergence_R * kept_R).sum() / kept_R.sum().clamp(min=1)
