"""Federated loss: each step asks only about some classes - those present and a random few.

Nothing here waits for the device: the number of columns follows from sizes that the host knows,
and surplus columns get weight 0.

Shapes: R regions, C classes (background has number C), K = C + 1, S sampled columns.
Source: Detic specification section 3 (USE_FED_LOSS), section 12.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ColumnSample:
    """The columns one step computes.

    Attributes:
        columns_S: int64, distinct; may contain the background column C.
        weight_S: float32; 1 where the column counts in the loss, 0 for background and surplus.
    """

    columns_S: Tensor
    weight_S: Tensor

    @classmethod
    def fixed(cls, columns_S: Tensor, num_classes: int) -> ColumnSample:
        """A given set instead of a random one (tests, replays); C in it counts for nothing."""
        return cls(columns_S, (columns_S < num_classes).float())


def federated_columns(
    labels_R: Tensor,
    freq_weight_C: Tensor,
    size: int = 50,
    *,
    max_present: int | None = None,
    count_background: bool = True,
    generator: torch.Generator | None = None,
) -> ColumnSample:
    """Every label that occurs, completed to ``size`` by classes drawn by frequency.

    As published, the background takes one of the places where it occurs. Classes are drawn without replacement,
    with probability proportional to their weight; a weight of 0 is never drawn, so fewer than
    ``size`` columns count where the vocabulary is that small. If ``size`` or more labels occur,
    all of them count and none is drawn.

    Args:
        labels_R: int64, 0..C.
        freq_weight_C: non-negative, from :func:`~detic_ext.losses.class_frequency.frequency_weight`.
        size: FED_LOSS_NUM_CAT.
        max_present: an upper bound, known to the caller, of how many distinct labels occur
            (annotated objects of the batch + 1); labels beyond it would be lost. It keeps S small
            on an accelerator, where S is ``min(R, C + 1)`` without it. None on the CPU: counted.
        count_background: False = all places are for classes (FED_LOSS_COUNT_BACKGROUND).
        generator: source of randomness on the tensors' device; None = the global one.

    Returns:
        ``S = min(max(size, bound of labels), C + 1)`` columns.
    """
    num_columns = freq_weight_C.numel() + 1
    present_K = torch.zeros(num_columns, dtype=torch.bool, device=freq_weight_C.device)
    present_K.index_fill_(0, labels_R, True)
    if not count_background:
        present_K[-1] = False
    if max_present is not None:
        bound = min(labels_R.numel(), max_present)
    else:
        on_host = present_K.device.type == "cpu"
        bound = int(present_K.sum()) if on_host else labels_R.numel()
    # The background competes with weight 0: it is in where it occurs and cannot be drawn.
    weight_K = torch.cat([freq_weight_C, freq_weight_C.new_zeros(1)])
    score_K = draw_order(weight_K, generator).masked_fill(present_K, torch.inf)
    score_S, columns_S = score_K.topk(min(max(size, bound), num_columns))
    wanted = present_K.sum().clamp(min=size)
    counts_S = torch.arange(columns_S.numel(), device=columns_S.device) < wanted
    counts_S &= (score_S > 0) & (columns_S < num_columns - 1)
    return ColumnSample(columns_S, counts_S.float())


def draw_order(weight_C: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Scores whose n largest are a weighted draw of n without replacement; 0 for weight 0.

    Each class waits an exponential time at the rate of its weight; the earliest are drawn.
    """
    weight_C = weight_C.float()
    wait_C = torch.empty_like(weight_C).exponential_(generator=generator)
    smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    return (weight_C / wait_C.clamp_(min=smallest)).clamp(max=largest)


def federated_class_weight(sample: ColumnSample, num_classes: int) -> Tensor:
    """``[C]`` weights of the same set for losses over all columns: 1 in it, else 0."""
    weight_K = sample.weight_S.new_zeros(num_classes + 1)
    return weight_K.index_copy(0, sample.columns_S, sample.weight_S)[:num_classes]
