"""Image labels teach the query with the largest predicted box, in every decoder layer.

Shapes: K decoder layers, B images, Q queries, C classes (no background column), R = B * Q.
Source: Detic specification section 11.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detic_ext.losses.image_label_batch import ImageLabelBatch, host_to_device
from detic_ext.losses.image_label_loss import selected_loss


def largest_query_loss(
    logits_KBQC: Tensor, boxes_KBQ4: Tensor, labels: Sequence[Sequence[int]]
) -> Tensor:
    """Binary cross-entropy of the largest query with each label, summed over classes and layers.

    Mean over the labels of an image, then over the images; images without labels add nothing.

    Args:
        logits_KBQC: of all supervised layers.
        boxes_KBQ4: (centre, size) as shares of the image; only sizes matter, without gradient.
        labels: class numbers of each image.

    Returns:
        Scalar before WEAK_WEIGHT; 0 (still part of the graph) without any label.

    Raises:
        DatasetError: a label that is no class number.
    """
    _, num_images, num_queries, num_classes = logits_KBQC.shape
    area_KBQ = boxes_KBQ4.detach()[..., 2:].float().prod(dim=-1)
    largest_KB = area_KBQ.argmax(dim=2)
    firsts = torch.arange(num_images) * num_queries
    rows_KB = largest_KB + host_to_device(firsts, largest_KB.device)
    losses = []
    for logits_BQC, boxes_BQ4, rows_B in zip(logits_KBQC, boxes_KBQ4, rows_KB, strict=True):
        batch = ImageLabelBatch(
            boxes_R4=boxes_BQ4.flatten(0, 1),
            num_boxes=[num_queries] * num_images,
            labels=labels,
            image_sizes=[(1, 1)] * num_images,
            num_classes=num_classes,
        )
        answering = host_to_device(torch.tensor(batch.answering, dtype=torch.int64), rows_B.device)
        selection = batch.select_per_image(rows_B[answering])
        logits_MC = logits_BQC.flatten(0, 1)[selection.rows_M]
        losses.append(selected_loss(logits_MC, selection).loss)
    return torch.stack(losses).sum()
