"""Regions and a zero-shot classifier, as the cases about classification losses need them.

Shapes: R regions, F input features, D embedding width, K = C + 1 columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Results
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier, prepare_classifier

WIDTH = 512  # D, CLIP's


@dataclass(frozen=True)
class ClassifierInputs:
    """What one stage of a detector head classifies.

    Attributes:
        model: our classifier.
        weight_DK: its columns in the plain layout, for the plain product.
        features: leaf that gradients are taken for, ``[R, F]``, or ``[R, D]`` if embedded.
        embedded: whether the features are projected and scaled already.
    """

    model: ZeroShotClassifier
    weight_DK: Tensor
    features: Tensor
    embedded: bool

    @classmethod
    def make(
        cls,
        device: torch.device,
        generator: torch.Generator,
        *,
        num_classes: int,
        regions: int,
        input_dim: int | None,
    ) -> ClassifierInputs:
        """Random inputs.

        Args:
            device: where.
            generator: on the host.
            num_classes: C.
            regions: R.
            input_dim: F, to include the projection; None = features are embedded already.
        """
        model = ZeroShotClassifier(
            input_dim=input_dim or WIDTH,
            weight_dim=WIDTH,
            weight_DK=prepare_classifier(torch.randn(num_classes, WIDTH, generator=generator)),
        ).to(device)
        features = torch.randn(regions, input_dim or WIDTH, generator=generator).to(device)
        if input_dim is None:
            features = model.temperature * F.normalize(features, dim=1)
        weight_DK = model.zs_weight.contiguous()
        return cls(model, weight_DK, features.requires_grad_(), input_dim is None)

    def embed(self, rows_M: Tensor | None = None) -> Tensor:
        """Embedded regions, all or some."""
        chosen = self.features if rows_M is None else self.features.index_select(0, rows_M)
        return chosen if self.embedded else self.model.embed(chosen)

    def results(self, loss: Tensor) -> Results:
        """The loss and its gradient."""
        (gradient,) = torch.autograd.grad(loss, self.features)
        return {"loss": loss.detach(), "grad": gradient}
