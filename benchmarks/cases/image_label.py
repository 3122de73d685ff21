"""Image-label loss: choose the region and classify it, or classify all and choose.

Shapes: B images, R regions of all images, D embedding width, K columns. Detic specification
section 4, ``max_size``.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier, prepare_classifier

WIDTH = 512


def build(
    device: torch.device,
    *,
    images: int,
    num_classes: int,
    proposals: int = 128,
    input_dim: int | None = None,
) -> Problem:
    """Forward and backward of one stage.

    Args:
        device: where.
        images: B, with one label each.
        num_classes: C.
        proposals: regions per image.
        input_dim: start from features of this width and include the projection to the
            embeddings; None = start from the embeddings.
    """
    generator = torch.Generator().manual_seed(0)
    model = ZeroShotClassifier(
        input_dim=input_dim or WIDTH,
        weight_dim=WIDTH,
        weight_DK=prepare_classifier(torch.randn(num_classes, WIDTH, generator=generator)),
    ).to(device)
    weight_DK = model.zs_weight.contiguous()  # the plain layout, for the plain product
    regions = images * proposals
    features = torch.randn(regions, input_dim or WIDTH, generator=generator).to(device)
    features.requires_grad_()
    corner, size = torch.rand(2, regions, 2, generator=generator) * 100
    boxes_R4 = torch.cat([corner, corner + size], dim=1).to(device)
    labels = torch.randint(num_classes, (images, 1), generator=generator).tolist()
    loss_fn = build_image_label_loss("max_size")

    def embed(x: Tensor) -> Tensor:
        return model.embed(x) if input_dim else 50 * F.normalize(x, dim=1)

    def results(loss: Tensor) -> Results:
        (gradient,) = torch.autograd.grad(loss, features)
        return {"loss": loss.detach(), "grad": gradient}

    def ours() -> Results:
        batch = ImageLabelBatch(
            boxes_R4=boxes_R4,
            num_boxes=[proposals] * images,
            labels=labels,
            image_sizes=[(200, 200)] * images,
            num_classes=num_classes,
        )

        def classify(rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
            chosen = features if rows_M is None else features.index_select(0, rows_M)
            return model.score(embed(chosen), columns_S=columns_S)

        return results(loss_fn(batch, classify).loss)

    def naive() -> Results:
        logits_RK = embed(features) @ weight_DK
        total = logits_RK.new_zeros(())
        for image, wanted in enumerate(labels):
            rows = slice(image * proposals, (image + 1) * proposals)
            boxes = boxes_R4[rows][:-1]
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            row_K = logits_RK[rows][int(areas.argmax().item())]
            for label in wanted:
                target_K = torch.zeros_like(row_K)
                target_K[label] = 1.0
                loss = F.binary_cross_entropy_with_logits(row_K, target_K, reduction="sum")
                total = total + loss / len(wanted)
        return results(total / images)

    return Problem({"ours": ours, "naive": naive})


CASE = Case(
    name="image_label",
    what="max-size image-label loss: choose then classify, or classify then choose",
    variants=(
        Variant("32 x 128, 1203", partial(build, images=32, num_classes=1203), target=20),
        Variant("8 x 128, 22047", partial(build, images=8, num_classes=22047), target=20),
        Variant(
            "32 x 128, 1203+projection",
            partial(build, images=32, num_classes=1203, input_dim=1024),
        ),
    ),
    tiny=Variant("tiny", partial(build, images=3, num_classes=20, proposals=5, input_dim=16)),
)
