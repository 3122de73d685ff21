"""Federated loss: classify only the sampled columns, or all of them and mask.

Shapes: R regions, D embedding width, C classes, K = C + 1. Detic specification section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.classifier_inputs import ClassifierInputs
from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.losses.federated import ColumnSample, federated_class_weight, federated_columns
from detic_ext.losses.sigmoid_ce import sigmoid_ce_loss
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier

SAMPLED = 50  # FED_LOSS_NUM_CAT
FOREGROUND = 0.25  # detectron2's share of positive regions


@dataclass(frozen=True)
class _FederatedStep:
    inputs: ClassifierInputs
    labels_R: Tensor
    freq_weight_C: Tensor
    max_present: int

    def ours(self) -> Results:
        torch.manual_seed(0)  # every way draws the same classes
        y_RD, model = self.inputs.embed(), self.inputs.model
        loss = BoxClassificationLoss(federated_size=SAMPLED)(
            partial(_classify, model, y_RD),
            self.labels_R,
            freq_weight_C=self.freq_weight_C,
            max_present=self.max_present,
        )
        return self.inputs.results(loss)

    def naive(self) -> Results:
        num_classes = self.freq_weight_C.numel()
        mask_C = federated_class_weight(self._sample(), num_classes)
        logits_RC = (self.inputs.embed() @ self.inputs.weight_DK)[:, :-1]
        target_RC = F.one_hot(self.labels_R, num_classes + 1)[:, :-1].to(logits_RC.dtype)
        loss_RC = F.binary_cross_entropy_with_logits(logits_RC, target_RC, reduction="none")
        return self.inputs.results((loss_RC * mask_C).sum() / self.labels_R.numel())

    def dynamic(self) -> Results:
        """The published 21k recipe: a classifier of this step's classes only."""
        sample = self._sample()
        kept = sample.columns_S[sample.weight_S > 0].tolist()
        subset = ClassSubset.of(kept, self.freq_weight_C.numel())
        classifier_DS = self.inputs.weight_DK[:, subset.columns(self.labels_R.device)]
        logits_RS = self.inputs.embed() @ classifier_DS
        return self.inputs.results(sigmoid_ce_loss(logits_RS, subset.map_labels(self.labels_R)))

    def _sample(self) -> ColumnSample:
        torch.manual_seed(0)
        return federated_columns(
            self.labels_R, self.freq_weight_C, SAMPLED, max_present=self.max_present
        )


def _classify(
    model: ZeroShotClassifier,
    y_RD: Tensor,
    rows_M: Tensor | None = None,
    columns_S: Tensor | None = None,
) -> Tensor:
    return model.score(y_RD if rows_M is None else y_RD[rows_M], columns_S=columns_S)


def build(
    device: torch.device,
    *,
    num_classes: int,
    regions: int = 512,
    input_dim: int | None = None,
    dynamic: bool = False,
) -> Problem:
    """Forward and backward of one stage.

    Args:
        device: where.
        num_classes: C.
        regions: R; a quarter are foreground, of random classes.
        input_dim: start from features of this width and include the projection to the
            embeddings; None = start from the embeddings.
        dynamic: also the dynamic classifier of the published 21k recipe.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = ClassifierInputs.make(
        device, generator, num_classes=num_classes, regions=regions, input_dim=input_dim
    )
    foreground = int(regions * FOREGROUND)
    labels = torch.full((regions,), num_classes)
    labels[:foreground] = torch.randint(num_classes, (foreground,), generator=generator)
    frequencies = torch.rand(num_classes, generator=generator) + 0.1
    step = _FederatedStep(inputs, labels.to(device), frequencies.to(device), foreground + 1)
    ways = {"ours": step.ours, "naive": step.naive}
    return Problem(ways | ({"dynamic": step.dynamic} if dynamic else {}))


CASE = Case(
    name="fedloss",
    what="federated loss, 512 regions: sampled columns, or all columns and a mask",
    variants=(
        Variant("1203", partial(build, num_classes=1203), target=5),
        Variant("22047", partial(build, num_classes=22047, dynamic=True), target=50),
        Variant("1203+projection", partial(build, num_classes=1203, input_dim=1024)),
        Variant("22047+projection", partial(build, num_classes=22047, input_dim=1024)),
    ),
    tiny=Variant("tiny", partial(build, num_classes=70, regions=24, dynamic=True)),
)
