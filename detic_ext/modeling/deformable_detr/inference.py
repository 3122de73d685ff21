"""Detections from the last decoder layer: the best (query, class) pairs, no suppression.

Shapes: B images, Q queries, C classes, R detections. Source: Detic specification section 11.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detic_ext.losses.detr_boxes import to_corners


def top_detections(
    logits_BQC: Tensor, boxes_BQ4: Tensor, image_sizes: Sequence[tuple[int, int]], limit: int
) -> list[Instances]:
    """The ``limit`` highest scores over queries and classes of each image.

    Args:
        logits_BQC: one binary question per class.
        boxes_BQ4: (centre, size) as shares of the image.
        image_sizes: (height, width) that the shares are of, pixels.
        limit: a query may appear with several classes.

    Returns:
        ``pred_boxes`` (XYXY pixels), ``scores`` (0..1, descending), ``pred_classes``. Predictions
        that are not finite are left out.
    """
    num_classes = logits_BQC.shape[2]
    scores_BX = logits_BQC.float().sigmoid().nan_to_num(-1.0).flatten(1)
    scores_BR, best_BR = scores_BX.topk(min(limit, scores_BX.shape[1]), dim=1)
    queries_BR = torch.div(best_BR, num_classes, rounding_mode="floor")
    corners_BQ4 = to_corners(boxes_BQ4.float())
    corners_BR4 = corners_BQ4.gather(1, queries_BR[..., None].expand(-1, -1, 4))
    results = []
    for image, (height, width) in enumerate(image_sizes):
        boxes_R4 = corners_BR4[image] * corners_BR4.new_tensor([width, height, width, height])
        proper_R = boxes_R4.isfinite().all(dim=1) & (scores_BR[image] >= 0)
        found = Instances((height, width))
        found.pred_boxes = Boxes(boxes_R4[proper_R])
        found.scores = scores_BR[image][proper_R]
        found.pred_classes = (best_BR[image] % num_classes)[proper_R]
        results.append(found)
    return results
