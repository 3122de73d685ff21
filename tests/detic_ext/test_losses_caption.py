"""Caption loss against a plain loop, with and without captions of other processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detic_ext.losses.caption import CaptionLoss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from ext_common.errors import ConfigError
from tests.detic_ext.losses_twins import bce


def _batch(num_boxes: list[int]) -> ImageLabelBatch:
    return ImageLabelBatch(
        torch.rand(sum(num_boxes), 4),
        num_boxes,
        [[]] * len(num_boxes),
        [(9, 9)] * len(num_boxes),
        1,
    )


def _loop(logits_RN: Tensor, num_boxes: list[int], weight: float, first_own: int) -> Tensor:
    total, row = logits_RN.new_zeros(()), -1
    for image, n in enumerate(num_boxes):
        row += n
        for column in range(logits_RN.shape[1]) if n else []:
            own = column == first_own + image
            total = total + (1 if own else weight) * bce(logits_RN[row, column], float(own))
    return total / len(num_boxes)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.sampled_from([1.0, 0.125, 0.0]),
    st.integers(0, 2),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_loop(
    num_boxes: list[int], weight: float, rank: int, later_ranks: int
) -> None:
    images = len(num_boxes)
    shape = (sum(num_boxes), images * (rank + later_ranks))
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss, batch = CaptionLoss(negative_weight=weight), _batch(num_boxes)
    ours = loss(logits[loss.select(batch)], batch, first_own_column=rank * images)
    loop = _loop(logits, num_boxes, weight, rank * images)
    assert ours.item() == pytest.approx(loop.item(), rel=1e-9, abs=1e-12)
    (actual,) = torch.autograd.grad(ours, logits)
    wanted = torch.autograd.grad(loop, logits)[0] if loop.requires_grad else logits.detach() * 0
    torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-12)


def test_gradient_by_finite_differences() -> None:
    loss, batch = CaptionLoss(negative_weight=0.125), _batch([2, 0, 1])
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, batch, first_own_column=3), (logits,))


def test_one_process_is_the_case_of_weight_one() -> None:
    batch, logits = _batch([1, 2]), torch.randn(2, 2)
    torch.testing.assert_close(
        CaptionLoss()(logits, batch), CaptionLoss(negative_weight=1.0)(logits, batch)
    )


@pytest.mark.parametrize("first_own", [0, 1])
def test_missing_captions_are_refused(first_own: int) -> None:
    with pytest.raises(ConfigError, match="one caption per image"):
        CaptionLoss()(
            torch.zeros(3, 3 - 1 + first_own), _batch([1, 1, 1]), first_own_column=first_own
        )
