"""Classification losses of box batches against plain loops and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.federated import ColumnSample, federated_class_weight, federated_columns
from detic_ext.losses.sigmoid_ce import sampled_sigmoid_ce_loss, sigmoid_ce_loss
from detic_ext.losses.softmax_ce import softmax_ce_loss
from ext_common.errors import ConfigError
from ext_common.modeling.zero_shot_classifier import ZeroShotClassifier
from tests.detic_ext.losses_twins import loop_sigmoid_ce, loop_softmax_ce


@st.composite
def _regions(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[float]]:
    """Logits (float64), labels with background, 0/1 class weights."""
    num_classes = draw(st.integers(1, 6))
    labels = draw(st.lists(st.integers(0, num_classes), max_size=8))
    weight = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=num_classes, max_size=num_classes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits = torch.randn(
        len(labels), num_classes + 1, dtype=torch.float64, generator=generator
    ).requires_grad_()
    return logits, torch.tensor(labels, dtype=torch.int64), weight


def _same(ours: Tensor, loop: Tensor, logits: Tensor) -> None:
    assert ours.item() == pytest.approx(loop.item(), rel=1e-9, abs=1e-12)
    (actual,) = torch.autograd.grad(ours, logits, retain_graph=True)
    wanted = torch.zeros_like(logits)
    if loop.requires_grad:
        (wanted,) = torch.autograd.grad(loop, logits, retain_graph=True)
    torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-12)


@given(_regions())
@settings(max_examples=40, deadline=None)
def test_sigmoid_equals_the_plain_loop(regions) -> None:
    logits, labels, weight = regions
    ours = sigmoid_ce_loss(logits, labels, torch.tensor(weight, dtype=torch.float64))
    _same(ours, loop_sigmoid_ce(logits, labels, weight), logits)
    _same(
        sigmoid_ce_loss(logits, labels), loop_sigmoid_ce(logits, labels, [1] * len(weight)), logits
    )


@given(_regions())
@settings(max_examples=40, deadline=None)
def test_softmax_equals_the_plain_loop(regions) -> None:
    logits, labels, weight = regions
    with_background = [*weight, 1.0]
    ours = softmax_ce_loss(logits, labels, torch.tensor(with_background, dtype=torch.float64))
    _same(ours, loop_softmax_ce(logits, labels, with_background), logits)
    plain = loop_softmax_ce(logits, labels, [1.0] * len(with_background))
    _same(softmax_ce_loss(logits, labels), plain, logits)


@given(_regions(), st.integers(0, 7), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_sampled_columns_equal_the_masked_full_loss(regions, size: int, seed: int) -> None:
    logits, labels, weight = regions
    num_classes = len(weight)
    generator = torch.Generator().manual_seed(seed)
    sample = federated_columns(labels, torch.tensor(weight) * 9, size, generator=generator)
    mask = federated_class_weight(sample, num_classes)
    full = sigmoid_ce_loss(logits, labels, mask)
    ours = sampled_sigmoid_ce_loss(
        logits[:, sample.columns_S], labels, sample.columns_S, sample.weight_S
    )
    _same(ours, full, logits)
    _same(full, loop_sigmoid_ce(logits, labels, mask.tolist()), logits)


def test_columns_outside_the_sample_get_no_gradient() -> None:
    model = ZeroShotClassifier(input_dim=6, weight_dim=4, num_classes=9)
    labels = torch.tensor([2, 9, 5])
    sample = ColumnSample.fixed(torch.tensor([2, 5, 7, 9]), 9)
    loss = BoxClassificationLoss(federated_size=4)(
        lambda rows_M=None, columns_S=None: model(torch.ones(3, 6), columns_S=columns_S),
        labels,
        freq_weight_C=torch.ones(9),
        sample=sample,
    )
    loss.backward()
    used = model.zs_weight.grad.abs().sum(dim=0) > 0
    assert used.nonzero()[:, 0].tolist() == [2, 5, 7]


def test_order_of_regions_and_columns_does_not_matter() -> None:
    logits, labels = torch.randn(20, 6, dtype=torch.float64), torch.randint(0, 6, (20,))
    rows, columns = torch.randperm(20), torch.randperm(5)
    whole = sigmoid_ce_loss(logits, labels)
    torch.testing.assert_close(sigmoid_ce_loss(logits[rows], labels[rows]), whole)
    torch.testing.assert_close(sampled_sigmoid_ce_loss(logits[:, columns], labels, columns), whole)


def test_a_class_of_weight_zero_is_as_if_it_were_absent() -> None:
    logits, labels = torch.randn(12, 6, dtype=torch.float64), torch.randint(0, 5, (12,))
    labels[labels == 4] = 5
    weight = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64)
    shorter = torch.where(labels == 5, 4, labels)
    torch.testing.assert_close(
        sigmoid_ce_loss(logits, labels, weight),
        sigmoid_ce_loss(logits[:, [0, 1, 2, 3, 5]], shorter),
    )


VARIANTS = {
    "sigmoid": {},
    "federated": {"federated_size": 4},
    "unseen": {"ignore_unseen": True},
    "federated unseen": {"federated_size": 4, "ignore_unseen": True},
    "softmax": {"softmax": True},
    "softmax federated": {"softmax": True, "federated_size": 4},
    "softmax unseen": {"softmax": True, "ignore_unseen": True},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_by_finite_differences(options: dict[str, object]) -> None:
    loss = BoxClassificationLoss(**options)
    labels = torch.tensor([0, 3, 5, 5, 1])
    frequencies = torch.tensor([3.0, 0, 2, 1, 0])
    sample = federated_columns(labels, frequencies, 4) if loss.federated_size else None

    def value(logits: Tensor) -> Tensor:
        return loss(KnownLogits(logits), labels, freq_weight_C=frequencies, sample=sample)

    logits = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (logits,))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("labels", [[], [3, 3], [0, 0, 2]], ids=["none", "background", "classes"])
def test_variants_equal_their_loops_on_edge_cases(options, labels: list[int]) -> None:
    """No regions, background only, foreground only; class 2 has no training images."""
    loss = BoxClassificationLoss(**options)
    frequencies = torch.tensor([3.0, 5.0, 0.0])
    logits = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    labels_R = torch.tensor(labels, dtype=torch.int64)
    ours = loss(KnownLogits(logits), labels_R, freq_weight_C=frequencies)
    weight = [1.0, 1.0, 0.0 if loss.ignore_unseen else 1.0]
    if loss.softmax:
        expected = loop_softmax_ce(logits, labels_R, [*weight, 1.0])
    else:
        if loss.federated_size and 2 not in labels:
            weight[2] = 0.0  # never drawn
        expected = loop_sigmoid_ce(logits, labels_R, weight)
    _same(ours, expected, logits)


@pytest.mark.parametrize("name", ["federated", "unseen", "softmax unseen"])
def test_missing_frequencies_are_named(name: str) -> None:
    loss = BoxClassificationLoss(**VARIANTS[name])
    assert loss.needs_frequencies
    with pytest.raises(ConfigError, match="CAT_FREQ_PATH"):
        loss(KnownLogits(torch.zeros(1, 4)), torch.tensor([0]))


def test_federated_loss_asks_for_its_columns_only() -> None:
    asked = []

    def classify(rows_M=None, columns_S=None):
        asked.append(columns_S)
        return torch.zeros(4, len(columns_S))

    labels = torch.tensor([7, 100, 100, 31])
    BoxClassificationLoss(federated_size=10)(classify, labels, freq_weight_C=torch.ones(100))
    (columns,) = asked
    assert columns.numel() == 10
    assert {7, 31, 100} <= set(columns.tolist())


@pytest.mark.parametrize("loss_fn", [sigmoid_ce_loss, softmax_ce_loss])
def test_half_precision_logits_are_summed_in_single_precision(loss_fn) -> None:
    logits, labels = torch.randn(50, 6).bfloat16(), torch.randint(0, 6, (50,))
    loss = loss_fn(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_fn(logits.float(), labels))
