"""Caption loss: an image's whole-image box should match its own caption and no other.

Shapes: B images, M of them with regions, N caption columns.
Source: Detic specification section 4 (caption loss, SYNC_CAPTION_BATCH).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.losses.image_label_batch import ImageLabelBatch, host_to_device
from ext_common.errors import ConfigError


class CaptionLoss(nn.Module):
    """Binary cross-entropy with every caption column, summed over columns, mean over images.

    Args:
        negative_weight: factor of the columns of other images: NEG_CAP_WEIGHT where captions are
            gathered over processes (SYNC_CAPTION_BATCH), 1 where they are not.
    """

    def __init__(self, *, negative_weight: float = 1.0) -> None:
        super().__init__()
        self.negative_weight = negative_weight

    def select(self, batch: ImageLabelBatch) -> Tensor:
        """``rows_M``: the last region (image box) of each image that has regions."""
        rows = [batch.first_rows[i] + batch.num_boxes[i] - 1 for i in _images(batch)]
        return host_to_device(torch.tensor(rows, dtype=torch.int64), batch.boxes_R4.device)

    def forward(
        self, logits_MN: Tensor, batch: ImageLabelBatch, *, first_own_column: int = 0
    ) -> Tensor:
        """The loss before CAPTION_WEIGHT and IMAGE_LOSS_WEIGHT.

        Args:
            logits_MN: logits of the regions of :meth:`select` at the caption columns.
            batch: regions of the images; their labels are not used.
            first_own_column: column of the batch's first caption; image i owns the i-th after it
                (B * rank where captions are gathered from all processes).

        Returns:
            Scalar; 0 (still part of the graph) if no image has regions.

        Raises:
            ConfigError: fewer caption columns than images.
        """
        columns = logits_MN.shape[1]
        if first_own_column + batch.num_images > columns:
            raise ConfigError(
                f"{columns} captions, but the batch's {batch.num_images} images own those from "
                f"column {first_own_column}",
                fix="give one caption per image",
            )
        own = torch.tensor([first_own_column + i for i in _images(batch)], dtype=torch.int64)
        logits_MN = logits_MN.to(torch.promote_types(logits_MN.dtype, torch.float32))
        own_MN = F.one_hot(host_to_device(own, logits_MN.device), columns).to(logits_MN.dtype)
        weight_MN = own_MN + (1 - own_MN) * self.negative_weight
        total = F.binary_cross_entropy_with_logits(logits_MN, own_MN, weight_MN, reduction="sum")
        return total / batch.num_images


def _images(batch: ImageLabelBatch) -> list[int]:
    return [i for i in range(batch.num_images) if batch.num_boxes[i]]
