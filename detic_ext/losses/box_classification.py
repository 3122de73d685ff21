"""Classification loss of box-annotated regions: sigmoid or softmax, federated, unseen classes.

Shapes: R regions, C classes, K = C + 1 columns (background last), S sampled columns.
Source: Detic specification section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detic_ext.losses.class_frequency import seen_class_weight
from detic_ext.losses.classify import Classify
from detic_ext.losses.federated import ColumnSample, federated_class_weight, federated_columns
from detic_ext.losses.sigmoid_ce import sampled_sigmoid_ce_loss, sigmoid_ce_loss
from detic_ext.losses.softmax_ce import softmax_ce_loss
from ext_common.errors import ConfigError


class BoxClassificationLoss(nn.Module):
    """Chooses the variant, samples its columns and classifies only those.

    Args:
        softmax: softmax over classes and background instead of one sigmoid per class.
        federated_size: FED_LOSS_NUM_CAT where USE_FED_LOSS is on, else None.
        ignore_unseen: IGNORE_ZERO_CATS; classes without training images are left out.
        count_background: the background takes one of the places of the federated loss.
    """

    def __init__(
        self,
        *,
        softmax: bool = False,
        federated_size: int | None = None,
        ignore_unseen: bool = False,
        count_background: bool = True,
    ) -> None:
        super().__init__()
        self.softmax = softmax
        self.federated_size = federated_size
        self.ignore_unseen = ignore_unseen
        self.count_background = count_background

    @property
    def needs_frequencies(self) -> bool:
        """Whether :meth:`forward` needs ``freq_weight_C``."""
        return self.ignore_unseen or self.federated_size is not None

    def forward(
        self,
        classify: Classify,
        labels_R: Tensor,
        *,
        freq_weight_C: Tensor | None = None,
        sample: ColumnSample | None = None,
        max_present: int | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            classify: gives logits of the regions, background column last.
            labels_R: int64, 0..C.
            freq_weight_C: class weights where :attr:`needs_frequencies`.
            sample: use this set instead of drawing one (federated only).
            max_present: bound of distinct labels, see
                :func:`~detic_ext.losses.federated.federated_columns`.

        Returns:
            Scalar, 0 without regions.

        Raises:
            ConfigError: frequencies are needed and missing.
        """
        seen_C: Tensor | None = None
        if self.ignore_unseen:
            seen_C = seen_class_weight(_given(freq_weight_C))
        if self.softmax:
            logits_RK = classify()
            return softmax_ce_loss(logits_RK, labels_R, _softmax_weight(logits_RK, seen_C, sample))
        if sample is None and self.federated_size is not None:
            sample = federated_columns(
                labels_R,
                _given(freq_weight_C),
                self.federated_size,
                max_present=max_present,
                count_background=self.count_background,
            )
        if sample is None:
            return sigmoid_ce_loss(classify(), labels_R, seen_C)
        weight_S = sample.weight_S
        if seen_C is not None:
            # the background column already weighs 0; any class stands in for its lookup
            weight_S = weight_S * seen_C[sample.columns_S.clamp(max=seen_C.numel() - 1)]
        logits_RS = classify(None, sample.columns_S)
        return sampled_sigmoid_ce_loss(logits_RS, labels_R, sample.columns_S, weight_S)


def _given(freq_weight_C: Tensor | None) -> Tensor:
    if freq_weight_C is None:
        raise ConfigError(
            "this classification loss needs class frequencies",
            fix="set MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH, or turn off USE_FED_LOSS and "
            "IGNORE_ZERO_CATS",
        )
    return freq_weight_C


def _softmax_weight(
    logits_RK: Tensor, seen_C: Tensor | None, sample: ColumnSample | None
) -> Tensor | None:
    """Weight of regions by label, background 1; None = all 1.

    A drawn federated set holds every label that occurs, so all regions would weigh 1: nothing is
    drawn, and only a given set can make a difference.
    """
    if seen_C is None and sample is not None:
        seen_C = federated_class_weight(sample, logits_RK.shape[1] - 1)
    return None if seen_C is None else torch.cat([seen_C, seen_C.new_ones(1)])
