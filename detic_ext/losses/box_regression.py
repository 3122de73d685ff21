"""Box regression of foreground regions, class-agnostic: L1 on deltas, or generalised IoU.

Shapes: R regions; boxes are XYXY in absolute pixels. Source: Detic specification sections 1.3, 3;
the delta parameters are those of R-CNN (Girshick et al. 2014, appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError

KINDS = ("smooth_l1", "giou")
_EPS = 1e-7  # square pixels, against empty boxes
_MAX_LOG_SCALE = math.log(1000.0 / 16)  # a box grows at most 62.5-fold in one step


class BoxRegressionLoss(nn.Module):
    """Sum over the foreground regions, divided by the number of all regions.

    Args:
        weights: factors of (dx, dy, dw, dh) in the prediction.
        kind: ``smooth_l1`` on the deltas or ``giou`` on the decoded boxes (BBOX_REG_LOSS_TYPE).
        beta: where smooth L1 turns from square to linear; 0 = L1.

    Raises:
        ConfigError: an unknown kind.
    """

    def __init__(
        self,
        *,
        weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        kind: str = "smooth_l1",
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(
                f"unknown box regression loss {kind!r}",
                where="MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
                fix=f"one of {', '.join(KINDS)}",
            )
        self.weights = weights
        self.kind = kind
        self.beta = beta

    def forward(
        self,
        deltas_R4: Tensor,
        proposals_R4: Tensor,
        targets_R4: Tensor,
        labels_R: Tensor,
        num_classes: int,
    ) -> Tensor:
        """The loss.

        Args:
            deltas_R4: predictions.
            proposals_R4: the regions, with positive width and height where foreground.
            targets_R4: matched annotated boxes; the proposal itself (or anything) elsewhere.
            labels_R: int64; foreground is ``0 <= label < num_classes``.
            num_classes: C, or the number of classes of this call's classifier.

        Returns:
            Scalar, 0 (still part of the graph) without foreground. Background rows of any value,
            even non-finite, add neither loss nor gradient.
        """
        foreground_R1 = ((labels_R >= 0) & (labels_R < num_classes))[:, None]
        deltas_R4 = deltas_R4.to(torch.promote_types(deltas_R4.dtype, torch.float32))
        deltas_R4 = torch.where(foreground_R1, deltas_R4, 0.0)
        if self.kind == "giou":
            boxes_R4 = decode_deltas(deltas_R4, proposals_R4, self.weights)
            loss_R = giou_loss(boxes_R4, targets_R4.to(boxes_R4.dtype))
            total = torch.where(foreground_R1[:, 0], loss_R, 0.0).sum()
        else:
            wanted_R4 = encode_deltas(proposals_R4, targets_R4, self.weights)
            wanted_R4 = torch.where(foreground_R1, wanted_R4.to(deltas_R4.dtype), 0.0)
            total = F.smooth_l1_loss(deltas_R4, wanted_R4, beta=self.beta, reduction="sum")
        return total / max(labels_R.numel(), 1)


def encode_deltas(
    boxes_R4: Tensor, targets_R4: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """``[R, 4]``: shift in units of the box size and log of the scale that lead to the target."""
    x, y, w, h = _centre_form(boxes_R4)
    target_x, target_y, target_w, target_h = _centre_form(targets_R4)
    deltas = ((target_x - x) / w, (target_y - y) / h, (target_w / w).log(), (target_h / h).log())
    return torch.stack([weight * d for weight, d in zip(weights, deltas, strict=True)], dim=1)


def decode_deltas(
    deltas_R4: Tensor, boxes_R4: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Boxes ``[R, 4]`` moved by deltas: the inverse of :func:`encode_deltas`, growth limited."""
    x, y, w, h = _centre_form(boxes_R4.to(deltas_R4.dtype))
    dx, dy, dw, dh = (deltas_R4 / deltas_R4.new_tensor(weights)).unbind(1)
    x, y = x + dx * w, y + dy * h
    half_w = 0.5 * w * dw.clamp(max=_MAX_LOG_SCALE).exp()
    half_h = 0.5 * h * dh.clamp(max=_MAX_LOG_SCALE).exp()
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=1)


def giou_loss(boxes_R4: Tensor, targets_R4: Tensor) -> Tensor:
    """``[R]``: 1 - generalised IoU (Rezatofighi et al. 2019), between 0 and 2.

    Unlike torchvision's, it does not make the host wait for the device.
    """
    overlap_R = _area(
        torch.maximum(boxes_R4[:, :2], targets_R4[:, :2]),
        torch.minimum(boxes_R4[:, 2:], targets_R4[:, 2:]),
    )
    hull_R = _area(
        torch.minimum(boxes_R4[:, :2], targets_R4[:, :2]),
        torch.maximum(boxes_R4[:, 2:], targets_R4[:, 2:]),
    )
    areas_R = _area(boxes_R4[:, :2], boxes_R4[:, 2:]) + _area(targets_R4[:, :2], targets_R4[:, 2:])
    union_R = areas_R - overlap_R
    return 1 - overlap_R / (union_R + _EPS) + (hull_R - union_R) / (hull_R + _EPS)


def _area(low_R2: Tensor, high_R2: Tensor) -> Tensor:
    return (high_R2 - low_R2).clamp(min=0).prod(dim=1)


def _centre_form(boxes_R4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes_R4.unbind(1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
