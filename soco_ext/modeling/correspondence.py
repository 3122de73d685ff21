"""Which boxes of two views are the same object, on the device (specification 2.6).

Shapes: N images, K boxes per image and view, P levels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_object(ids_a_NK: Tensor, ids_b_NK: Tensor) -> Tensor:
    """Equality of ids: bool [N, K of a, K of b]."""
    return ids_a_NK[:, :, None] == ids_b_NK[:, None, :]


def same_object_assigned(
    ids_a_NK: Tensor, levels_a_NK: Tensor, ids_b_NK: Tensor, levels_b_NK: Tensor
) -> Tensor:
    """Equality of ids where both boxes have a level (not -1): bool [N, K of a, K of b]."""
    used_a, used_b = levels_a_NK >= 0, levels_b_NK >= 0
    return same_object(ids_a_NK, ids_b_NK) & used_a[:, :, None] & used_b[:, None, :]


def same_object_by_level(
    ids_a_NK: Tensor, levels_a_NK: Tensor, ids_b_NK: Tensor, levels_b_NK: Tensor, levels: int
) -> Tensor:
    """Correspondence of all slots: bool [N, P * K of a, P * K of b], the level outer.

    A slot (level, box) takes part only if it is the box's own level; the two views may have an
    object on different levels.
    """
    slots_a, slots_b = _own_slots(levels_a_NK, levels), _own_slots(levels_b_NK, levels)
    same = same_object(ids_a_NK.repeat(1, levels), ids_b_NK.repeat(1, levels))
    return same & slots_a[:, :, None] & slots_b[:, None, :]


def _own_slots(levels_NK: Tensor, levels: int) -> Tensor:
    numbers = torch.arange(levels, device=levels_NK.device)
    return (levels_NK[:, None, :] == numbers[None, :, None]).flatten(1)
