"""Box regression against a plain loop, detectron2's transform and finite differences."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detic_ext.losses.box_regression import (
    KINDS,
    BoxRegressionLoss,
    decode_deltas,
    encode_deltas,
    giou_loss,
)
from ext_common.errors import ConfigError
from tests.detic_ext.losses_twins import loop_box_loss, random_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def _case(labels: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = len(labels)
    deltas = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    boxes, targets = random_boxes(n, generator), random_boxes(n, generator)
    return deltas.requires_grad_(), boxes, targets, torch.tensor(labels, dtype=torch.int64)


@pytest.mark.parametrize("kind", KINDS)
@given(labels=st.lists(st.integers(0, 3), max_size=8), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_equals_the_plain_loop(kind: str, labels: list[int], seed: int) -> None:
    deltas, boxes, targets, labels_R = _case(labels, seed)
    ours = BoxRegressionLoss(kind=kind)(deltas, boxes, targets, labels_R, 3)
    loop = loop_box_loss(kind, deltas, boxes, targets, labels_R, 3)
    assert ours.item() == pytest.approx(loop.item(), rel=1e-7, abs=1e-9)
    (actual,) = torch.autograd.grad(ours, deltas)
    wanted = torch.autograd.grad(loop, deltas)[0] if loop.requires_grad else deltas.detach() * 0
    torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("kind", "beta"), [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)])
def test_gradient_by_finite_differences(kind: str, beta: float) -> None:
    deltas, boxes, targets, labels = _case([0, 2, 3, 1])
    loss = BoxRegressionLoss(kind=kind, beta=beta)
    assert torch.autograd.gradcheck(lambda d: loss(d, boxes, targets, labels, 3), (deltas,))


@pytest.mark.parametrize("kind", KINDS)
def test_background_rows_may_hold_anything(kind: str) -> None:
    deltas, boxes, targets, labels = _case([0, 3, 3, 1])
    bad = deltas.detach().clone()
    bad[1], bad[2] = float("inf"), float("nan")
    bad.requires_grad_()
    targets[1] = boxes[1, [0, 1, 0, 1]]  # no width and height: log 0
    clean = BoxRegressionLoss(kind=kind)(deltas, boxes, targets, labels, 3)
    loss = BoxRegressionLoss(kind=kind)(bad, boxes, targets, labels, 3)
    loss.backward()
    torch.testing.assert_close(loss, clean)
    assert (bad.grad[1:3] == 0).all()
    assert (bad.grad[[0, 3]] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_regions_does_not_matter(kind: str) -> None:
    case = _case([0, 3, 1, 2, 3, 1])
    order = torch.randperm(6)
    loss = BoxRegressionLoss(kind=kind)
    torch.testing.assert_close(loss(*(part[order] for part in case), 3), loss(*case, 3))


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_deltas_are_detectron2s(seed: int) -> None:
    deltas, boxes, targets, _ = _case([0] * 6, seed)
    transform = Box2BoxTransform(weights=WEIGHTS)
    encoded = encode_deltas(boxes, targets, WEIGHTS)
    torch.testing.assert_close(encoded, transform.get_deltas(boxes, targets))
    torch.testing.assert_close(decode_deltas(encoded, boxes, WEIGHTS), targets)
    far = deltas.detach() * 30  # beyond the limit of growth
    expected = transform.apply_deltas(far.float(), boxes.float())
    # detectron2 decodes in float32: a corner near zero is a difference of numbers in the hundreds
    found = decode_deltas(far.float(), boxes.float(), WEIGHTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_giou_is_torchvisions(seed: int) -> None:
    _, boxes, targets, _ = _case([0] * 9, seed)
    torch.testing.assert_close(giou_loss(boxes, targets), generalized_box_iou_loss(boxes, targets))
    assert (giou_loss(boxes, boxes) < 1e-6).all()


def test_unknown_kind_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="'diou'.*smooth_l1, giou"):
        BoxRegressionLoss(kind="diou")
