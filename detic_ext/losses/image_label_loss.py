"""What all image-label losses share: the call, the result, and the loss of a chosen region.

Shapes: R regions, K columns (background last), M chosen regions, P (image, label) pairs.
Source: Detic specification section 4; Detic paper section 3.3 (Zhou et al. 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detic_ext.losses.classify import Classify
from detic_ext.losses.image_label_batch import ImageLabelBatch, Selection


@dataclass(frozen=True)
class ImageLabelResult:
    """Outcome of an image-label loss.

    Attributes:
        loss: scalar, mean over images of the mean over their labels, before IMAGE_LOSS_WEIGHT.
        selection: the regions that answered for the labels.
        label_logit_P: detached logit of each pair's region at the pair's label.
    """

    loss: Tensor
    selection: Selection
    label_logit_P: Tensor


class ImageLabelLoss(nn.Module, ABC):
    """Base of the losses that :mod:`detic_ext.losses.factory` builds by name."""

    needs_image_box: ClassVar[bool] = False
    """The last region of every image must be the whole-image box (ADD_IMAGE_BOX)."""
    needs_proposal_logits: ClassVar[bool] = False
    """A second branch must score the regions (WITH_SOFTMAX_PROP)."""

    @abstractmethod
    def forward(
        self,
        batch: ImageLabelBatch,
        classify: Classify,
        proposal_logits_RK: Tensor | None = None,
    ) -> ImageLabelResult:
        """The loss.

        Args:
            batch: regions and labels.
            classify: gives logits; called for no more regions and columns than needed.
            proposal_logits_RK: second branch, only for losses that need it.

        Returns:
            See :class:`ImageLabelResult`; without any pair the loss is 0 and part of the graph.
        """


class BoxSelectedLoss(ImageLabelLoss):
    """Losses that choose the region by its box alone, before anything is classified.

    Args:
        softmax: softmax over all columns instead of sigmoids (SOFTMAX_WEAK_LOSS).
    """

    def __init__(self, *, softmax: bool = False) -> None:
        super().__init__()
        self.softmax = softmax

    @abstractmethod
    def select(self, batch: ImageLabelBatch) -> Selection:
        """The regions to classify, one for each image that has regions and labels."""

    def forward(
        self,
        batch: ImageLabelBatch,
        classify: Classify,
        proposal_logits_RK: Tensor | None = None,
    ) -> ImageLabelResult:
        """The loss; see :meth:`ImageLabelLoss.forward`."""
        selection = self.select(batch)
        return selected_loss(classify(selection.rows_M), selection, softmax=self.softmax)


def selected_loss(
    logits_MK: Tensor, selection: Selection, *, softmax: bool = False
) -> ImageLabelResult:
    """Cross-entropy of the chosen regions with their labels.

    With sigmoids: the sum over **all** columns, background included, of the binary cross-entropy
    with "this column is the label". As the background logit is 0 without a bias, it adds ln 2.

    Args:
        logits_MK: logits of ``selection.rows_M``.
        selection: regions and labels.
        softmax: minus log softmax at the label instead.
    """
    logits_MK = logits_MK.to(torch.promote_types(logits_MK.dtype, torch.float32))
    label_logit_P = logits_MK[selection.slot_P, selection.label_P]
    if softmax:
        loss_P = -F.log_softmax(logits_MK, dim=1)[selection.slot_P, selection.label_P]
    else:
        # sum_c bce(s_c, [c = l]) = sum_c softplus(s_c) - s_l: one sum serves all labels of a region
        loss_P = sum_of_softplus(logits_MK)[selection.slot_P] - label_logit_P
    loss = (loss_P * selection.weight_P.to(loss_P.dtype)).sum()
    return ImageLabelResult(loss, selection, label_logit_P.detach())


def sum_of_softplus(logits_MK: Tensor) -> Tensor:
    """``[M]``: binary cross-entropy summed over columns if every answer were no."""
    return -F.logsigmoid(-logits_MK).sum(dim=1)
