"""``wsddn``: regions vote for the image's labels (Bilen and Vedaldi 2016).

Shapes: R regions, K columns, M answering images, N regions of the largest, P (image, label) pairs.
Source: Detic specification section 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from detic_ext.losses.classify import Classify
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.image_label_loss import ImageLabelLoss, ImageLabelResult
from ext_common.errors import ConfigError
from ext_common.modeling.full_precision import full_precision

_EPS = 1e-10


class WsddnLoss(ImageLabelLoss):
    """Cross-entropy of the image's score, averaged over columns (the other losses sum).

    The image's score at a class is the sum over its regions of sigmoid(classification) times the
    softmax over the regions of the second branch. The region named in the result is the one that
    adds most at the label; it changes nothing.
    """

    needs_proposal_logits: ClassVar[bool] = True

    def forward(
        self,
        batch: ImageLabelBatch,
        classify: Classify,
        proposal_logits_RK: Tensor | None = None,
    ) -> ImageLabelResult:
        """The loss; see :meth:`ImageLabelLoss.forward`.

        Raises:
            ConfigError: ``proposal_logits_RK`` is missing.
        """
        if proposal_logits_RK is None:
            raise ConfigError(
                "the wsddn loss needs a second branch that scores regions",
                fix="set MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP True",
            )
        logits_RK = classify()
        logits_RK = logits_RK.to(torch.promote_types(logits_RK.dtype, torch.float32))
        rows_MN, valid_MN = batch.image_regions()
        share_MNK = proposal_logits_RK.to(logits_RK.dtype)[rows_MN]
        share_MNK = share_MNK.masked_fill(~valid_MN[..., None], -torch.inf).softmax(dim=1)
        vote_MNK = logits_RK.sigmoid()[rows_MN] * share_MNK
        score_MK = vote_MNK.sum(dim=1).clamp(_EPS, 1 - _EPS)

        selection = batch.select_per_image(rows_MN[:, 0])
        slot_P, label_P = selection.slot_P, selection.label_P
        best_P = vote_MNK.detach().transpose(1, 2)[slot_P, label_P].argmax(dim=1)
        target_PK = F.one_hot(label_P, logits_RK.shape[1]).to(logits_RK.dtype)
        # probabilities cannot be compared in half precision, and autocast refuses to
        with full_precision(logits_RK):
            loss_PK = F.binary_cross_entropy(score_MK[slot_P], target_PK, reduction="none")
        loss_P = loss_PK.mean(dim=1) * selection.weight_P.to(loss_PK.dtype)
        selection = batch.select_per_pair(rows_MN[slot_P, best_P])
        label_logit_P = logits_RK.detach()[selection.rows_M, label_P]
        return ImageLabelResult(loss_P.sum(), selection, label_logit_P)
