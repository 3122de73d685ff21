"""Soft-NMS within classes, all classes at once (specification 5.2; Bodla et al. 2017).

The published loop looks at every box of every class in each round. Classes do not touch each other,
so here each round settles one box per class, and classes that cannot reach the best detections any
more are left alone. Shapes: N boxes, G classes that occur, M most boxes of a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ext_common.errors import ConfigError

METHODS = ("gaussian", "linear", "hard")
_GONE = float("-inf")


@dataclass(frozen=True)
class SoftNMSOptions:
    """How overlap lowers a score.

    Args:
        method: ``gaussian``: times exp(-IoU^2 / sigma); ``linear``: times 1 - IoU above the
            threshold; ``hard``: times 0 there (and at the threshold).
        sigma: of the gaussian.
        linear_threshold: IoU.
        prune: boxes whose score falls to this are dropped.

    Raises:
        ConfigError: an unknown method.
    """

    method: str = "gaussian"
    sigma: float = 0.5
    linear_threshold: float = 0.5
    prune: float = 0.001

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"unknown method {self.method!r}",
                where="MODEL.ROI_HEADS.SOFT_NMS_METHOD",
                fix=f"one of {', '.join(METHODS)}",
            )

    def factor(self, iou: Tensor) -> Tensor:
        """What a score is multiplied with, element by element."""
        if self.method == "gaussian":
            return torch.exp(-(iou**2) / self.sigma)
        if self.method == "linear":
            return torch.where(iou > self.linear_threshold, 1 - iou, torch.ones_like(iou))
        return (iou < self.linear_threshold).to(iou.dtype)


def soft_nms(
    boxes_N4: Tensor,
    scores_N: Tensor,
    classes_N: Tensor,
    options: SoftNMSOptions,
    max_detections: int = -1,
) -> tuple[Tensor, Tensor]:
    """Boxes in the order in which they are settled, and what their scores have become.

    Args:
        boxes_N4: XYXY, finite.
        scores_N: finite.
        classes_N: integers.
        options: method and numbers.
        max_detections: how many are wanted; negative = all.

    Returns:
        int64 numbers of the kept boxes, and their lowered scores, by falling score.
    """
    if len(scores_N) == 0:
        return classes_N.new_zeros(0, dtype=torch.int64), scores_N
    numbers_K = _worth_settling(scores_N, options.prune)
    numbers_GM = _by_class(numbers_K, classes_N)
    boxes_GM4 = boxes_N4[numbers_GM.clamp(min=0)].float()
    scores_GM = scores_N[numbers_GM.clamp(min=0)].masked_fill(numbers_GM < 0, _GONE)
    kept, lowered = [], []
    settled = 0
    while len(scores_GM):
        best_G, column_G = scores_GM.max(dim=1)
        kept.append(numbers_GM.gather(1, column_G[:, None])[:, 0])
        lowered.append(best_G)
        settled += len(best_G)
        iou_GM = _overlap(boxes_GM4, column_G)
        scores_GM = scores_GM * options.factor(iou_GM).to(scores_GM.dtype)
        scores_GM = scores_GM.scatter(1, column_G[:, None], _GONE)
        # a factor of 0 makes NaN of what is gone already
        scores_GM = torch.where(scores_GM > options.prune, scores_GM, _GONE)
        alive_G = scores_GM.amax(dim=1) > _GONE
        if 0 <= max_detections <= settled:
            least = torch.cat(lowered).topk(max(max_detections, 1)).values[-1]
            alive_G &= scores_GM.amax(dim=1) >= least
        scores_GM, boxes_GM4 = scores_GM[alive_G], boxes_GM4[alive_G]
        numbers_GM = numbers_GM[alive_G]
    keep_K, scores_K = torch.cat(kept), torch.cat(lowered)
    first_K = keep_K.argsort(stable=True)  # equal scores by number, as the first maximum is taken
    order_K = first_K[scores_K[first_K].argsort(descending=True, stable=True)]
    if max_detections >= 0:
        order_K = order_K[:max_detections]
    return keep_K[order_K], scores_K[order_K]


def _worth_settling(scores_N: Tensor, prune: float) -> Tensor:
    """Numbers of the boxes above the pruning score, and of the best one in any case."""
    worth_N = scores_N > prune
    worth_N[scores_N.argmax()] = True
    return worth_N.nonzero()[:, 0]


def _by_class(numbers_K: Tensor, classes_N: Tensor) -> Tensor:
    """Box numbers as a table ``[G, M]`` with a row per class, filled up with -1."""
    own_K = classes_N[numbers_K]
    order_K = own_K.argsort(stable=True)
    _, row_K, counts_G = own_K[order_K].unique_consecutive(return_inverse=True, return_counts=True)
    starts_G = counts_G.cumsum(0) - counts_G
    column_K = torch.arange(len(own_K), device=own_K.device) - starts_G[row_K]
    table_GM = numbers_K.new_full((len(counts_G), int(counts_G.max())), -1)
    table_GM[row_K, column_K] = numbers_K[order_K]
    return table_GM


def _overlap(boxes_GM4: Tensor, column_G: Tensor) -> Tensor:
    """IoU ``[G, M]`` of every class's chosen box with all of that class."""
    chosen_G14 = boxes_GM4.gather(1, column_G[:, None, None].expand(-1, 1, 4))
    low = torch.maximum(boxes_GM4[..., :2], chosen_G14[..., :2])
    high = torch.minimum(boxes_GM4[..., 2:], chosen_G14[..., 2:])
    shared_GM = (high - low).clamp(min=0).prod(dim=2)
    area_GM = (boxes_GM4[..., 2:] - boxes_GM4[..., :2]).prod(dim=2)
    area_G1 = (chosen_G14[..., 2:] - chosen_G14[..., :2]).prod(dim=2)
    union_GM = area_GM + area_G1 - shared_GM
    return torch.where(shared_GM > 0, shared_GM / union_GM, torch.zeros_like(shared_GM))
