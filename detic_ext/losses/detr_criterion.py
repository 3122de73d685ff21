"""Losses of a DETR on boxes: focal class loss, L1 and GIoU of matched queries, for every layer.

Shapes: K decoder layers, B images, Q queries, T encoder tokens, C classes, S sampled classes,
R = B * Q (or B * T) predictions of a layer, M matched ones, N annotated boxes.
Source: Detic specification section 11; Deformable DETR (Zhu et al. 2021), appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from detic_ext.losses.detr_boxes import matched_giou_loss
from detic_ext.losses.detr_data import DetrPredictions, DetrTargets, EncoderPredictions
from detic_ext.losses.detr_matching import Assignment, MatchWeights, assign, match_cost
from detic_ext.losses.federated import ColumnSample, federated_columns
from detic_ext.losses.image_label_batch import host_to_device
from ext_common.distributed import mean_over_processes


@dataclass(frozen=True)
class CriterionOptions:
    """Settings of the losses.

    Args:
        weights: factors of the losses, which are those of the matching costs as well.
        federated_size: classes per layer and step - those matched and random others; None = all
            classes.
    """

    weights: MatchWeights = field(default_factory=MatchWeights)
    federated_size: int | None = None


@dataclass(frozen=True)
class _Pairs:
    """Matches of one layer: ``rows_M`` of its R predictions, ``targets_M`` of N boxes."""

    rows_M: Tensor
    targets_M: Tensor


class DetrCriterion(nn.Module):
    """Weighted losses of all decoder layers and of the encoder.

    The encoder of a two-stage model is asked whether a token shows any object, in its first class
    column, which ranks the proposals; its other columns serve nothing and get no gradient.

    Args:
        num_classes: C.
        options: settings.
        freq_weight_C: sampling weights of the classes; None = all alike. It is stored with the
            model (``freq_weight``) where classes are sampled.
    """

    freq_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        options: CriterionOptions | None = None,
        freq_weight_C: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options or CriterionOptions()
        if self.options.federated_size is not None:
            weight_C = torch.ones(num_classes) if freq_weight_C is None else freq_weight_C
            self.register_buffer("freq_weight", weight_C.float())

    def forward(self, predictions: DetrPredictions, targets: DetrTargets) -> dict[str, Tensor]:
        """The losses.

        Args:
            predictions: of all layers that are to be supervised.
            targets: annotated boxes; images without any push all of their queries to "nothing".

        Returns:
            ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last layer, with ``_0``, ``_1`` ... of
            those before it, and with ``_enc`` of the encoder: weighted scalars over the mean number
            of annotated boxes per process (at least 1). The names do not depend on the targets.
        """
        decoder_pairs, encoder_pairs = self._match(predictions, targets)
        count = torch.full((), float(sum(targets.counts)), device=targets.boxes_N4.device)
        norm = mean_over_processes(count).clamp(min=1.0)
        losses: dict[str, Tensor] = {}
        last = len(decoder_pairs) - 1
        for layer, pairs in enumerate(decoder_pairs):
            logits_RC = predictions.logits_KBQC[layer].flatten(0, 1).float()
            boxes_R4 = predictions.boxes_KBQ4[layer].flatten(0, 1).float()
            labels_M = targets.labels_N[pairs.targets_M]
            suffix = "" if layer == last else f"_{layer}"
            total = self._class_loss(logits_RC, pairs.rows_M, labels_M, targets.num_distinct)
            losses[f"loss_ce{suffix}"] = total * (self.options.weights.classes / norm)
            losses |= self._box_losses(boxes_R4, pairs, targets, norm, suffix)
        if predictions.encoder is not None and encoder_pairs is not None:
            encoder = predictions.encoder
            total = self._object_loss(encoder, encoder_pairs.rows_M)
            losses["loss_ce_enc"] = total * (self.options.weights.classes / norm)
            boxes_R4 = encoder.boxes_BT4.flatten(0, 1).float()
            losses |= self._box_losses(boxes_R4, encoder_pairs, targets, norm, "_enc")
        return losses

    @torch.no_grad()
    def _match(
        self, predictions: DetrPredictions, targets: DetrTargets
    ) -> tuple[list[_Pairs], _Pairs | None]:
        """Pairs of every decoder layer, and of the encoder."""
        weights, costs = self.options.weights, []
        per_image = list(zip(targets.labels_of_images(), targets.boxes_of_images(), strict=True))
        for image, (labels_N, boxes_N4) in enumerate(per_image):
            logits_KQN = predictions.logits_KBQC[:, image].index_select(2, labels_N)
            boxes_KQ4 = predictions.boxes_KBQ4[:, image]
            costs.append(match_cost(logits_KQN, boxes_KQ4, boxes_N4, weights))
        encoder = predictions.encoder
        if encoder is not None:
            for image, (_, boxes_N4) in enumerate(per_image):
                logits_1TN = encoder.logits_BT[image][None, :, None].expand(-1, -1, len(boxes_N4))
                cost_1TN = match_cost(logits_1TN, encoder.boxes_BT4[image][None], boxes_N4, weights)
                unusable_1T1 = ~encoder.usable_BT[image][None, :, None]
                costs.append(cost_1TN.masked_fill(unusable_1T1, torch.inf))
        found = assign(costs)
        num_layers, num_images, num_queries = predictions.logits_KBQC.shape[:3]
        decoder_pairs = self._pairs(found[:num_images], num_queries, num_layers, targets)
        if encoder is None:
            return decoder_pairs, None
        num_tokens = encoder.logits_BT.shape[1]
        return decoder_pairs, self._pairs(found[num_images:], num_tokens, 1, targets)[0]

    @staticmethod
    def _pairs(
        found: Sequence[Assignment], per_image: int, num_layers: int, targets: DetrTargets
    ) -> list[_Pairs]:
        """Pairs of each layer, numbered through the batch, on the device of the targets."""
        parts, first_target = [np.zeros((2, num_layers, 0), dtype=np.int64)], 0
        for image, (one, count) in enumerate(zip(found, targets.counts, strict=True)):
            rows_GM = one.queries_GM + image * per_image
            parts.append(np.stack([rows_GM, one.targets_GM + first_target]))
            first_target += count
        table = torch.from_numpy(np.concatenate(parts, axis=2))
        rows_GM, targets_GM = host_to_device(table, targets.labels_N.device)
        return [_Pairs(rows_GM[layer], targets_GM[layer]) for layer in range(num_layers)]

    def _class_loss(
        self, logits_RC: Tensor, rows_M: Tensor, labels_M: Tensor, num_distinct: int
    ) -> Tensor:
        """Focal loss of all predictions at the classes that this layer asks about."""
        sample = self._classes(labels_M, num_distinct)
        labels_R = labels_M.new_full((logits_RC.shape[0],), self.num_classes)
        labels_R = labels_R.index_put((rows_M,), labels_M)
        # the sample may hold the number that stands for "none", with weight 0
        columns_S = sample.columns_S.clamp(max=self.num_classes - 1)
        logits_RS = logits_RC.index_select(1, columns_S)
        target_RS = (labels_R[:, None] == sample.columns_S) & (sample.columns_S < self.num_classes)
        loss_RS = self._focal(logits_RS, target_RS)
        return (loss_RS * sample.weight_S.to(loss_RS.dtype)).sum()

    def _classes(self, labels_M: Tensor, num_distinct: int) -> ColumnSample:
        size = self.options.federated_size
        if size is None:
            all_C = torch.arange(self.num_classes, device=labels_M.device)
            return ColumnSample.fixed(all_C, self.num_classes)
        return federated_columns(labels_M, self.freq_weight, size, max_present=num_distinct)

    def _object_loss(self, encoder: EncoderPredictions, rows_M: Tensor) -> Tensor:
        """Focal loss of usable tokens: matched ones show an object, the others do not."""
        logits_R = encoder.logits_BT.flatten().float()
        target_R = torch.zeros_like(logits_R, dtype=torch.bool).index_fill(0, rows_M, True)
        loss_R = self._focal(logits_R, target_R)
        return torch.where(encoder.usable_BT.flatten(), loss_R, 0.0).sum()

    def _focal(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = self.options.weights
        loss: Tensor = sigmoid_focal_loss(
            logits, target.to(logits.dtype), alpha=weights.alpha, gamma=weights.gamma
        )
        return loss

    def _box_losses(
        self, boxes_R4: Tensor, pairs: _Pairs, targets: DetrTargets, norm: Tensor, suffix: str
    ) -> dict[str, Tensor]:
        """L1 and GIoU of the matched predictions; zeros in the graph where there are none."""
        matched_M4 = boxes_R4[pairs.rows_M]
        wanted_M4 = targets.boxes_N4[pairs.targets_M]
        l1 = (matched_M4 - wanted_M4).abs().sum()
        giou = matched_giou_loss(matched_M4, wanted_M4).sum()
        return {
            f"loss_bbox{suffix}": l1 * (self.options.weights.l1 / norm),
            f"loss_giou{suffix}": giou * (self.options.weights.giou / norm),
        }
