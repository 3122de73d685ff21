"""Boxes of later cascade stages, and their ground truth.

Shapes: G ground-truth boxes and R proposals of one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor


@torch.no_grad()
def label_proposals(
    proposals: Sequence[Instances],
    targets: Sequence[Instances],
    matcher: Matcher,
    num_classes: int,
) -> None:
    """Set ``gt_classes`` and ``gt_boxes`` of each proposal from the best-matching ground truth.

    Args:
        proposals: per image, with ``proposal_boxes``; written to in place.
        targets: per image, with ``gt_boxes`` and ``gt_classes``.
        matcher: says by IoU which proposals are foreground.
        num_classes: C, the label of the background.
    """
    for found, target in zip(proposals, targets, strict=True):
        matched_R, labels_R = matcher(pairwise_iou(target.gt_boxes, found.proposal_boxes))
        if len(target) == 0:
            found.gt_classes = torch.full_like(matched_R, num_classes)
            found.gt_boxes = Boxes(torch.zeros_like(found.proposal_boxes.tensor))
            continue
        classes_R = target.gt_classes[matched_R]
        found.gt_classes = torch.where(
            labels_R == 0, torch.full_like(classes_R, num_classes), classes_R
        )
        found.gt_boxes = target.gt_boxes[matched_R]


def refine_proposals(
    proposals: Sequence[Instances], boxes: Sequence[Tensor], *, drop_empty: bool
) -> list[Instances]:
    """Proposals of the next stage: the boxes of this one, detached and clipped.

    Args:
        proposals: of this stage, with ``objectness_logits`` and perhaps ``scores``.
        boxes: per image [R, 4], refined.
        drop_empty: remove boxes without area (training). At inference rows must stay aligned with
            the scores of the earlier stages.
    """
    refined = []
    for found, boxes_R4 in zip(proposals, boxes, strict=True):
        clipped = Boxes(clip_boxes(boxes_R4.detach(), found.image_size))
        following = Instances(found.image_size)
        following.proposal_boxes = clipped
        for name in ("objectness_logits", "scores"):
            if found.has(name):
                following.set(name, found.get(name))
        refined.append(following[clipped.nonempty()] if drop_empty else following)
    return refined


def clip_boxes(boxes_R4: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [R, 4] inside an image of ``size`` (h, w); a new tensor.

    Boxes that are not finite become empty ones in the corner. detectron2's method refuses them,
    for which the host has to wait; here training goes on to the loss, which is not finite either,
    and that ends the step on every process.
    """
    height, width = size
    limit_4 = boxes_R4.new_tensor([width, height, width, height])
    finite_R1 = torch.isfinite(boxes_R4).all(dim=1, keepdim=True)
    return torch.where(finite_R1, boxes_R4.clamp(min=0).minimum(limit_4), 0.0)
