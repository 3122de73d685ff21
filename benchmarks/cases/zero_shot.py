"""Zero-shot detection after the encoder: classes, objectness fusion, soft-NMS, the best.

Naive is the published chain: every candidate of every class in each round of one loop.

Shapes: R regions, D joint embedding, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.plain_soft_nms import plain_soft_nms
from benchmarks.region_boxes import boxes_around_places
from regionclip_ext.losses.similarity import cosine_logits
from regionclip_ext.modeling.detections import DetectionOptions, detect
from regionclip_ext.modeling.score_fusion import fuse_objectness
from regionclip_ext.modeling.soft_nms import SoftNMSOptions

SIDE = 800  # pixels
OBJECTS = 25  # regions gather around so many places
TEMPERATURE = 0.01
DETECTIONS = 300
THRESHOLD = 0.02


def build(device: torch.device, *, regions: int, num_classes: int, dim: int = 256) -> Problem:
    """Post-processing of one picture's region embeddings.

    Args:
        device: where.
        regions: R.
        num_classes: C.
        dim: D.
    """
    generator = torch.Generator().manual_seed(0)
    which_R = torch.randint(OBJECTS, (regions,), generator=generator)
    boxes_R4 = boxes_around_places(which_R, (SIDE, SIDE), generator).to(device)
    # cosines spread by 1 / sqrt(D): a region has about ten classes above the threshold
    classes_CD = torch.randn(num_classes, dim, generator=generator)
    seen_OD = torch.randn(OBJECTS, dim, generator=generator)
    x_RD = seen_OD[which_R] + 0.1 * torch.randn(regions, dim, generator=generator)
    objectness_R = torch.rand(regions, generator=generator) * 8
    inputs = [t.to(device) for t in (x_RD, classes_CD, objectness_R)]

    def scores() -> Tensor:
        x, emb, objectness = inputs
        logits_RC = cosine_logits(x, emb, TEMPERATURE)
        logits_RK = torch.cat([logits_RC, torch.zeros_like(logits_RC[:, :1])], dim=1)
        return fuse_objectness(logits_RK.softmax(dim=1), objectness)

    def ours() -> Results:
        options = DetectionOptions(THRESHOLD, 0.5, DETECTIONS, soft=SoftNMSOptions())
        found, _ = detect(boxes_R4, scores(), (SIDE, SIDE), options)
        return {"boxes": found.pred_boxes.tensor, "scores": found.scores}

    def naive() -> Results:
        x, emb, objectness = inputs
        cosine_RC = F.normalize(x, dim=1) @ F.normalize(emb, dim=1).t()
        logits_RK = F.pad(cosine_RC / TEMPERATURE, (0, 1))
        scores_RK = (logits_RK.softmax(dim=1) * objectness[:, None]).sqrt()
        rows, classes = (scores_RK[:, :-1] > THRESHOLD).nonzero(as_tuple=True)
        boxes = boxes_R4.clamp(0, SIDE)[rows]
        kept, lowered = plain_soft_nms(boxes, scores_RK[rows, classes], classes)
        return {"boxes": boxes[kept][:DETECTIONS], "scores": lowered[:DETECTIONS]}

    return Problem({"ours": ours, "naive": naive})


CASE = Case(
    name="zero_shot",
    what="zero-shot scores, fusion and soft-NMS: all classes at once, or one loop over all",
    variants=(
        Variant("300 x 1203", partial(build, regions=300, num_classes=1203), target=10),
        Variant("100 x 6790", partial(build, regions=100, num_classes=6790), target=10),
    ),
    tiny=Variant("tiny", partial(build, regions=40, num_classes=30, dim=32)),
    tolerance=1e-5,
    most_repeats=3,
)
