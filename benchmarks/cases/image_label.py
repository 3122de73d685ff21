"""Image-label loss: choose the region and classify it, or classify all and choose.

Shapes: B images, R regions of all images, K columns. Detic specification section 4, ``max_size``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.classifier_inputs import ClassifierInputs
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch


@dataclass(frozen=True)
class _ImageLabelStep:
    inputs: ClassifierInputs
    boxes_R4: Tensor
    labels: list[list[int]]
    proposals: int

    def ours(self) -> Results:
        images = len(self.labels)
        batch = ImageLabelBatch(
            boxes_R4=self.boxes_R4,
            num_boxes=[self.proposals] * images,
            labels=self.labels,
            image_sizes=[(200, 200)] * images,
            num_classes=self.inputs.model.num_columns - 1,
        )
        return self.inputs.results(build_image_label_loss("max_size")(batch, self._classify).loss)

    def _classify(self, rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
        return self.inputs.model.score(self.inputs.embed(rows_M), columns_S=columns_S)

    def naive(self) -> Results:
        logits_RK = self.inputs.embed() @ self.inputs.weight_DK
        total = logits_RK.new_zeros(())
        for image, wanted in enumerate(self.labels):
            rows = slice(image * self.proposals, (image + 1) * self.proposals)
            boxes = self.boxes_R4[rows][:-1]
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            row_K = logits_RK[rows][int(areas.argmax().item())]
            for label in wanted:
                target_K = torch.zeros_like(row_K)
                target_K[label] = 1.0
                loss = F.binary_cross_entropy_with_logits(row_K, target_K, reduction="sum")
                total = total + loss / len(wanted)
        return self.inputs.results(total / len(self.labels))


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
    regions = images * proposals
    inputs = ClassifierInputs.make(
        device, generator, num_classes=num_classes, regions=regions, input_dim=input_dim
    )
    corner, size = torch.rand(2, regions, 2, generator=generator) * 100
    boxes_R4 = torch.cat([corner, corner + size], dim=1).to(device)
    labels = torch.randint(num_classes, (images, 1), generator=generator).tolist()
    step = _ImageLabelStep(inputs, boxes_R4, labels, proposals)
    return Problem({"ours": step.ours, "naive": step.naive})


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
