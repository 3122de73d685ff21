"""Correspondence of boxes on the device, against recorded matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from soco_ext.modeling.correspondence import (
    same_object,
    same_object_assigned,
    same_object_by_level,
)
from tests.golden_cases import golden_arrays

LEVELS = 4


def boxes_of(assigned: np.ndarray) -> tuple[Tensor, Tensor]:
    """Ids and levels [1, K] of a recorded list of slots, level outer; -1 and below = not used."""
    slots = torch.from_numpy(assigned.astype(np.int64)).view(LEVELS, -1)
    used = slots >= 0
    levels = torch.where(used.any(0), used.long().argmax(0), -1)
    return slots.amax(0)[None], levels[None]


def slot_pairs() -> list[tuple[str, str, str, str]]:
    found = [("correspondence_duplicates.npz", "assigned1", "assigned2", "corres")]
    geometry = golden_arrays("soco", "box_geometry.npz")
    cases = sorted(int(key.split("_")[1]) for key in geometry if key.startswith("assigned1_"))
    return found + [
        ("box_geometry.npz", f"assigned1_{c}", f"assigned2_{c}", f"corres_aware_{c}") for c in cases
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("name", "first", "second", "matrix"), slot_pairs())
def test_golden_matrices_of_levels_and_boxes(
    name: str, first: str, second: str, matrix: str
) -> None:
    arrays = golden_arrays("soco", name)
    (ids_a, levels_a), (ids_b, levels_b) = boxes_of(arrays[first]), boxes_of(arrays[second])
    found = same_object_by_level(ids_a, levels_a, ids_b, levels_b, LEVELS)
    np.testing.assert_array_equal(found[0].numpy(), arrays[matrix] > 0)
    # the small matrix has the same pairs, each box once
    small = same_object_assigned(ids_a, levels_a, ids_b, levels_b)
    assert small.sum() == found.sum()


def test_ids_alone() -> None:
    found = same_object(
        torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([[2.0, 2.0], [3.0, 1]])
    )
    assert found.tolist() == [[[False, False], [True, True]], [[True, False], [True, False]]]
