"""Region-concept contrast: a region against the concepts of all regions of the local batch.

Shapes: R regions, C concepts. Source: RegionCLIP specification 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def concept_contrast_loss(logits_RC: Tensor, labels_R: Tensor, kept_R: Tensor) -> Tensor:
    """Contrast of every kept region with the pseudo labels of the kept regions.

    The specification compares K kept regions with K label embeddings, and several of these are
    one concept's. Its sum over regions of a concept is a factor: with ``n_c`` = number of kept
    regions that are labelled c, the loss of a region is

        -log( n_y exp(z_y) / sum_c n_c exp(z_c) )

    so that the logits which distillation needs anyway serve here too, and nothing of size K x K is
    made. Evaluated in log space: finite also where all positives underflow.

    Args:
        logits_RC: of the student, cosine / temperature.
        labels_R: int64; the pseudo label of each region.
        kept_R: bool; the regions that count, as rows and as labels.

    Returns:
        Scalar mean over the kept regions; 0 and part of the graph where none is kept.
    """
    weights_R = kept_R.to(logits_RC.dtype)
    counts_C = logits_RC.new_zeros(logits_RC.shape[1]).index_add_(0, labels_R, weights_R)
    # -inf: a concept that no kept region has; with no kept region at all, any finite number will do
    log_counts_C = torch.where(kept_R.any(), counts_C, torch.ones_like(counts_C)).log()
    all_R = torch.logsumexp(logits_RC + log_counts_C, dim=1)
    own_R = logits_RC.gather(1, labels_R[:, None]).squeeze(1)
    # a region that is left out may have a label that no kept one has
    own_R = own_R + counts_C[labels_R].clamp(min=1).log()
    loss_R = torch.where(kept_R, all_R - own_R, torch.zeros_like(own_R))
    return loss_R.sum() / weights_R.sum().clamp(min=1)
