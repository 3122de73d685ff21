"""``min_loss``: the region with the smallest loss for a label answers for it."""

from __future__ import annotations

import torch
from torch import Tensor

from detic_ext.losses.classify import Classify
from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection
from detic_ext.losses.image_label_loss import (
    ImageLabelLoss,
    ImageLabelResult,
    selected_loss,
    sum_of_softplus,
)


class MinLoss(ImageLabelLoss):
    """Choosing needs all logits, but no gradients; the winners are then classified again."""

    def select(self, batch: ImageLabelBatch, logits_RK: Tensor) -> Selection:
        """The region of smallest summed cross-entropy for each label of each answering image."""
        logits_RK = logits_RK.detach()
        logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
        rows_PN, valid_PN = batch.pair_regions()
        label_P = batch.select_per_pair(rows_PN[:, 0]).label_P
        loss_PN = sum_of_softplus(logits_RK)[rows_PN] - logits_RK[rows_PN, label_P[:, None]]
        best_P1 = loss_PN.masked_fill(~valid_PN, torch.inf).argmin(1, keepdim=True)
        return batch.select_per_pair(rows_PN.gather(1, best_P1)[:, 0])

    def forward(
        self,
        batch: ImageLabelBatch,
        classify: Classify,
        proposal_logits_RK: Tensor | None = None,
    ) -> ImageLabelResult:
        """The loss; see :meth:`ImageLabelLoss.forward`."""
        with torch.no_grad():
            logits_RK = classify()
        selection = self.select(batch, logits_RK)
        return selected_loss(classify(selection.rows_M), selection)
