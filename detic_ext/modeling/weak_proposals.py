"""Proposals of images that have no boxes to learn from (specification section 4).

Shapes: N images, R proposals of an image; boxes are XYXY in absolute pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from detic_ext.modeling.stage_targets import clip_boxes


def zero_through(modules: Iterable[nn.Module]) -> Tensor | float:
    """A zero that depends on every trainable parameter of ``modules``.

    Added to a loss, it gives parameters that a batch does not use a zero gradient instead of none,
    so that all processes reduce the same set of gradients.
    """
    terms = [
        parameter.sum()
        for module in modules
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    return torch.stack(terms).sum() * 0.0 if terms else 0.0


def propose_without_targets(
    generator: nn.Module, images: ImageList, features: dict[str, Tensor]
) -> tuple[list[Instances], dict[str, Tensor]]:
    """Training-mode proposals and zero losses under the generator's usual names.

    The assignment of targets and the losses are not computed only to be multiplied by zero, where
    the generator allows it (detectron2's RPN, and any that has ``propose_without_targets``).
    """
    own = getattr(generator, "propose_without_targets", None)
    if own is not None:
        found: tuple[list[Instances], dict[str, Tensor]] = own(images, features)
        return found
    if isinstance(generator, RPN):
        maps = [features[name] for name in generator.in_features]
        anchors = generator.anchor_generator(maps)
        logits, deltas = generator.rpn_head(maps)
        logits = [score.permute(0, 2, 3, 1).flatten(1) for score in logits]
        box_dim = generator.anchor_generator.box_dim
        deltas = [
            delta.view(delta.shape[0], -1, box_dim, *delta.shape[-2:])
            .permute(0, 3, 4, 1, 2)
            .flatten(1, -2)
            for delta in deltas
        ]
        proposals = generator.predict_proposals(anchors, logits, deltas, images.image_sizes)
        zero = images.tensor.new_zeros(()) + zero_through([generator])
        return proposals, {"loss_rpn_cls": zero, "loss_rpn_loc": zero}
    empty = []
    for size in images.image_sizes:
        target = Instances(size)
        target.gt_boxes = Boxes(images.tensor.new_zeros((0, 4)))
        target.gt_classes = torch.zeros(0, dtype=torch.long, device=images.tensor.device)
        empty.append(target)
    proposals, losses = generator(images, features, empty)
    return proposals, {name: value * 0.0 for name, value in losses.items()}


def image_box(size: tuple[int, int], share: float) -> tuple[float, float, float, float]:
    """The centred box that covers ``share`` of width and height of an image of ``size`` (h, w)."""
    height, width = size
    margin_x, margin_y = width * (1.0 - share) / 2, height * (1.0 - share) / 2
    return (margin_x, margin_y, width - margin_x, height - margin_y)


def select_weak_proposals(
    proposals: Sequence[Instances],
    *,
    limit: int,
    image_box_share: float | None = None,
) -> list[Instances]:
    """The proposals that image labels are spread over.

    Args:
        proposals: per image, sorted by falling score.
        limit: keep so many of the first (``WS_NUM_PROPS``).
        image_box_share: append a box over this share of the picture as the last one; None = do not.

    Returns:
        Per image, fields ``proposal_boxes`` (detached, clipped, at most ``limit`` + 1) and
        ``objectness_logits``.
    """
    chosen = []
    for found in proposals:
        size = found.image_size
        boxes_R4 = found.proposal_boxes.tensor[:limit].detach()
        scores_R = found.objectness_logits[:limit].detach()
        if image_box_share is not None:
            whole = boxes_R4.new_tensor([image_box(size, image_box_share)])
            boxes_R4 = torch.cat([boxes_R4, whole])
            scores_R = torch.cat([scores_R, scores_R.new_ones(1)])
        kept = Instances(size)
        kept.proposal_boxes = Boxes(clip_boxes(boxes_R4, size))
        kept.objectness_logits = scores_R
        chosen.append(kept)
    return chosen
