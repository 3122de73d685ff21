"""``max_score``: the region that scores highest at a label answers for it ("YOLO9000")."""

from __future__ import annotations

import torch
from torch import Tensor

from detic_ext.losses.classify import Classify
from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection, host_to_device
from detic_ext.losses.image_label_loss import ImageLabelLoss, ImageLabelResult, selected_loss


class MaxScoreLoss(ImageLabelLoss):
    """Choosing needs the columns of the batch's labels only; the winners are then classified."""

    def select(self, batch: ImageLabelBatch, scores_RU: Tensor) -> Selection:
        """The best region for each label of each answering image.

        Args:
            batch: regions and labels.
            scores_RU: any increasing function of the logits, with one column for each of
                ``batch.distinct_labels``, in that order.
        """
        column = {label: u for u, label in enumerate(batch.distinct_labels)}
        rows_PN, valid_PN = batch.pair_regions()
        columns = [column[label] for i in batch.answering for label in batch.labels[i]]
        column_P = host_to_device(torch.tensor(columns, dtype=torch.int64), scores_RU.device)
        score_PN = scores_RU.detach()[rows_PN, column_P[:, None]]
        best_P1 = score_PN.masked_fill(~valid_PN, -torch.inf).argmax(1, keepdim=True)
        return batch.select_per_pair(rows_PN.gather(1, best_P1)[:, 0])

    def forward(
        self,
        batch: ImageLabelBatch,
        classify: Classify,
        proposal_logits_RK: Tensor | None = None,
    ) -> ImageLabelResult:
        """The loss; see :meth:`ImageLabelLoss.forward`."""
        labels_U = torch.tensor(batch.distinct_labels, dtype=torch.int64)
        with torch.no_grad():
            scores_RU = classify(None, host_to_device(labels_U, batch.boxes_R4.device))
        selection = self.select(batch, scores_RU)
        return selected_loss(classify(selection.rows_M), selection)
