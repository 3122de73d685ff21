"""Federated loss: classify only the sampled columns, or all of them and mask.

Shapes: R regions, D embedding width, C classes, K = C + 1. Detic specification section 3.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.losses.federated import federated_class_weight, federated_columns
from detic_ext.losses.sigmoid_ce import sigmoid_ce_loss
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier, prepare_classifier

WIDTH = 512
SAMPLED = 50  # FED_LOSS_NUM_CAT
FOREGROUND = 0.25  # detectron2's share of positive regions


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
        dynamic: also the published 21k recipe: a classifier of this step's classes only.
    """
    generator = torch.Generator().manual_seed(0)
    model = ZeroShotClassifier(
        input_dim=input_dim or WIDTH,
        weight_dim=WIDTH,
        weight_DK=prepare_classifier(torch.randn(num_classes, WIDTH, generator=generator)),
    ).to(device)
    weight_DK = model.zs_weight.contiguous()  # the plain layout, for the plain product
    features = torch.randn(regions, input_dim or WIDTH, generator=generator).to(device)
    features.requires_grad_()
    labels = torch.full((regions,), num_classes)
    foreground = int(regions * FOREGROUND)
    labels[:foreground] = torch.randint(num_classes, (foreground,), generator=generator)
    labels = labels.to(device)
    frequencies = torch.rand(num_classes, generator=generator).to(device) + 0.1
    loss_fn = BoxClassificationLoss(federated_size=SAMPLED)

    def embed() -> Tensor:
        return model.embed(features) if input_dim else 50 * F.normalize(features, dim=1)

    def results(loss: Tensor) -> Results:
        (gradient,) = torch.autograd.grad(loss, features)
        return {"loss": loss.detach(), "grad": gradient}

    def ours() -> Results:
        torch.manual_seed(0)  # both draw the same classes
        y = embed()
        loss = loss_fn(
            lambda rows_M=None, columns_S=None: model.score(y, columns_S=columns_S),
            labels,
            freq_weight_C=frequencies,
            max_present=foreground + 1,
        )
        return results(loss)

    def naive() -> Results:
        torch.manual_seed(0)
        sample = federated_columns(labels, frequencies, SAMPLED, max_present=foreground + 1)
        mask_C = federated_class_weight(sample, num_classes)
        y = embed()
        logits_RC = (y @ weight_DK)[:, :-1]
        target_RC = F.one_hot(labels, num_classes + 1)[:, :-1].to(logits_RC.dtype)
        loss_RC = F.binary_cross_entropy_with_logits(logits_RC, target_RC, reduction="none")
        return results((loss_RC * mask_C).sum() / regions)

    def dynamic_classifier() -> Results:
        torch.manual_seed(0)
        sample = federated_columns(labels, frequencies, SAMPLED, max_present=foreground + 1)
        kept = sample.columns_S[sample.weight_S > 0].tolist()
        subset = ClassSubset.of(kept, num_classes)
        classifier_DS = weight_DK[:, subset.columns(device)]
        y = embed()
        return results(sigmoid_ce_loss(y @ classifier_DS, subset.map_labels(labels)))

    ways = {"ours": ours, "naive": naive}
    return Problem(ways | ({"dynamic": dynamic_classifier} if dynamic else {}))


CASE = Case(
    name="fedloss",
    what="federated loss, 512 regions: sampled columns or all columns and a mask",
    variants=(
        Variant("1203", partial(build, num_classes=1203), target=5),
        Variant("22047", partial(build, num_classes=22047, dynamic=True), target=50),
        Variant("1203+projection", partial(build, num_classes=1203, input_dim=1024)),
        Variant("22047+projection", partial(build, num_classes=22047, input_dim=1024)),
    ),
    tiny=Variant("tiny", partial(build, num_classes=70, regions=24, input_dim=16, dynamic=True)),
)
