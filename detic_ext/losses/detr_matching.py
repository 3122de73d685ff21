"""Which query answers for which annotated box: the assignment of least total cost.

The device is asked once for all layers and images. Only what an optimal assignment can use leaves
it: of N boxes, each has its partner among its N cheapest queries - if a better one were further
down, one of those N would be free and no dearer. So the result is that of the full matrix.

Shapes: G layers, Q queries, N annotated boxes of an image, M = min(Q, N) pairs, S shortlist.
Source: DETR (Carion et al. 2020), section 3.1; class cost of Deformable DETR (Zhu et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from detic_ext.losses.detr_boxes import pairwise_giou_loss

_DEAR = 1e4  # what a cost that is not finite counts: the loss itself will show that it is not
_NOT_LISTED = 1e8  # above any sum of costs, so that it is used only where nothing else is left


@dataclass(frozen=True)
class MatchWeights:
    """Factors of the three costs, and the exponents of the class cost.

    Args:
        classes: of the class cost.
        l1: of the distance of boxes.
        giou: of 1 - GIoU.
        alpha: focal loss: weight of positives.
        gamma: focal loss: exponent of the error.
    """

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class Assignment:
    """Pairs of one image, on the host.

    Attributes:
        queries_GM: int64 query numbers.
        targets_GM: int64 numbers of the annotated boxes, ascending.
    """

    queries_GM: NDArray[np.int64]
    targets_GM: NDArray[np.int64]


def focal_class_cost(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """What the focal loss of one answer grows by if it is yes instead of no; any shape."""
    chance = logits.sigmoid()
    yes = alpha * (1 - chance) ** gamma * F.softplus(-logits)
    no = (1 - alpha) * chance**gamma * F.softplus(logits)
    return yes - no


@torch.no_grad()
def match_cost(
    logits_GQN: Tensor, boxes_GQ4: Tensor, target_boxes_N4: Tensor, weights: MatchWeights
) -> Tensor:
    """Cost ``[G, Q, N]`` of giving annotated box n to query q.

    Args:
        logits_GQN: of each query at the class of each annotated box.
        boxes_GQ4: predicted boxes, (centre, size) as shares.
        target_boxes_N4: annotated boxes, likewise.
        weights: factors.
    """
    boxes_R4 = boxes_GQ4.float().flatten(0, 1)
    box_cost_RN = weights.l1 * (boxes_R4[:, None] - target_boxes_N4[None]).abs().sum(dim=-1)
    box_cost_RN += weights.giou * pairwise_giou_loss(boxes_R4, target_boxes_N4)
    cost_GQN = focal_class_cost(logits_GQN.float(), alpha=weights.alpha, gamma=weights.gamma)
    return weights.classes * cost_GQN + box_cost_RN.view_as(cost_GQN)


@torch.no_grad()
def assign(costs: Sequence[Tensor]) -> list[Assignment]:
    """The assignment of least total cost for every layer of every image.

    Costs that are not finite count as very dear: matching never fails, and a prediction that is
    not finite is reported through its loss, in all processes alike.

    Args:
        costs: ``[G, Q, N]`` per image; G, Q and N may differ, N may be 0.

    Returns:
        One assignment per image with min(Q, N) pairs per layer.
    """
    listed = [_shortlist(cost_GQN) for cost_GQN in costs]
    if not listed:
        return []
    # one copy each; the device has to be waited for here, the algorithm runs on the host
    values = torch.cat([value.flatten() for value, _ in listed]).cpu().numpy()
    queries = torch.cat([query.flatten() for _, query in listed]).cpu().numpy()
    ends = list(accumulate(value.numel() for value, _ in listed))
    result = []
    for (value, _), end in zip(listed, ends, strict=True):
        place = slice(end - value.numel(), end)
        result.append(
            _solve_layers(values[place].reshape(value.shape), queries[place].reshape(value.shape))
        )
    return result


def _shortlist(cost_GQN: Tensor) -> tuple[Tensor, Tensor]:
    """The N cheapest queries of each annotated box: costs and query numbers ``[G, S, N]``."""
    cost_GQN = cost_GQN.nan_to_num(_DEAR, _DEAR, -_DEAR).clamp(-_DEAR, _DEAR)
    listed: tuple[Tensor, Tensor] = cost_GQN.topk(
        min(cost_GQN.shape[1:]), dim=1, largest=False, sorted=False
    )
    return listed


def _solve_layers(cost_GSN: NDArray[np.float32], query_GSN: NDArray[np.int64]) -> Assignment:
    solved = [_solve(cost, query) for cost, query in zip(cost_GSN, query_GSN, strict=True)]
    return Assignment(
        np.stack([queries for queries, _ in solved]), np.stack([targets for _, targets in solved])
    )


def _solve(
    cost_SN: NDArray[np.float32], query_SN: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    candidates, place = np.unique(query_SN, return_inverse=True)
    dense = np.full((len(candidates), cost_SN.shape[1]), _NOT_LISTED)
    dense[place.reshape(query_SN.shape), np.arange(cost_SN.shape[1])] = cost_SN
    targets, rows = linear_sum_assignment(dense.T)
    return candidates[rows], targets.astype(np.int64)
