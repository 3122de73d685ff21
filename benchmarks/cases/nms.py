"""Class-wise NMS of one picture: the best candidates first, or all candidates class by class.

Both ways do the whole post-processing of detectron2's ``fast_rcnn_inference``: rows that are not
finite, clipping, threshold, NMS within every class, the best 300.

Shapes: R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor

from benchmarks.case import Case, Problem, Results, Variant
from ext_common.nms import detect_class_wise

SIDE = 800  # pixels
OBJECTS = 25  # regions gather around so many places
NMS_THRESHOLD = 0.5
DETECTIONS = 300
# logits of a Detic model on a picture: 80 % of the scores are above 1e-4, 0.3 % above 0.02
MEAN_LOGIT, SPREAD = -8.0, 1.5


def build(
    device: torch.device, *, regions: int, num_classes: int, score_threshold: float
) -> Problem:
    """Post-processing of one picture.

    Args:
        device: where.
        regions: R.
        num_classes: C.
        score_threshold: of the detections.
    """
    generator = torch.Generator().manual_seed(0)
    boxes_R4 = _boxes(regions, generator).to(device)
    logits_RK = torch.randn(regions, num_classes + 1, generator=generator) * SPREAD + MEAN_LOGIT
    scores_RK = logits_RK.sigmoid().to(device)

    def run(infer: Callable[[Tensor], tuple[list[Instances], list[Tensor]]]) -> Results:
        (found,), (rows,) = infer(boxes_R4)
        return {
            "boxes": found.pred_boxes.tensor,
            "scores": found.scores,
            "classes": found.pred_classes,
            "rows": rows,
        }

    def ours(boxes_R4: Tensor) -> tuple[list[Instances], list[Tensor]]:
        return detect_class_wise(
            [boxes_R4],
            [scores_RK],
            [(SIDE, SIDE)],
            score_threshold=score_threshold,
            nms_threshold=NMS_THRESHOLD,
            max_detections=DETECTIONS,
        )

    def naive(boxes_R4: Tensor) -> tuple[list[Instances], list[Tensor]]:
        # clips in place, so it gets a copy
        found, rows = fast_rcnn_inference(
            [boxes_R4.clone()],
            [scores_RK],
            [(SIDE, SIDE)],
            score_threshold,
            NMS_THRESHOLD,
            DETECTIONS,
        )
        return found, rows

    return Problem({"ours": partial(run, ours), "naive": partial(run, naive)})


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    centre = torch.rand(OBJECTS, 2, generator=generator) * SIDE
    half = torch.rand(OBJECTS, 2, generator=generator) * SIDE / 8 + 10
    which = torch.randint(OBJECTS, (count,), generator=generator)
    middle = centre[which] + torch.randn(count, 2, generator=generator) * SIDE / 100
    size = half[which] * (0.15 * torch.randn(count, 2, generator=generator)).exp()
    return torch.cat([middle - size, middle + size], dim=1)


def _variant(num_classes: int, score_threshold: float, target: float | None) -> Variant:
    return Variant(
        f"300 x {num_classes} at {score_threshold:g}",
        partial(build, regions=300, num_classes=num_classes, score_threshold=score_threshold),
        target=target,
    )


CASE = Case(
    name="nms",
    what="class-wise NMS, 300 regions: the best candidates first, or all class by class",
    variants=(_variant(1203, 1e-4, 10), _variant(1203, 0.02, None), _variant(22047, 0.02, 30)),
    # enough candidates for torchvision to go class by class: below, it rounds coordinates
    tiny=Variant("tiny", partial(build, regions=50, num_classes=40, score_threshold=1e-4)),
)
