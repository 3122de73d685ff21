"""Which columns the federated loss takes: rule, distribution, edge cases."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detic_ext.losses.federated import (
    ColumnSample,
    draw_order,
    federated_class_weight,
    federated_columns,
)


def _counting(sample: ColumnSample) -> set[int]:
    """Columns of weight 1."""
    assert set(sample.weight_S.tolist()) <= {0.0, 1.0}
    return set(sample.columns_S[sample.weight_S > 0].tolist())


@st.composite
def _steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    num_classes = draw(st.integers(1, 12))
    labels = draw(st.lists(st.integers(0, num_classes), max_size=15))
    weight = st.sampled_from([0.0, 0.5, 3.0, 40.0])
    weights = draw(st.lists(weight, min_size=num_classes, max_size=num_classes))
    size = draw(st.integers(0, 15))
    return torch.tensor(labels, dtype=torch.int64), torch.tensor(weights), size


@given(_steps())
@settings(max_examples=150, deadline=None)
def test_the_rule(step) -> None:
    labels, weights, size = step
    num_classes = len(weights)
    sample = federated_columns(labels, weights, size)
    columns, counting = sample.columns_S.tolist(), _counting(sample)
    present = set(labels.tolist())
    drawable = {c for c in range(num_classes) if weights[c] > 0} - present
    assert len(set(columns)) == len(columns)
    assert present <= set(columns)
    assert present - {num_classes} <= counting
    drawn = counting - present
    assert drawn <= drawable
    assert len(drawn) == min(max(size - len(present), 0), len(drawable))
    # nothing is computed in vain, but for the background's place and missing classes
    assert len(columns) == min(max(size, len(present)), num_classes + 1)
    mask = federated_class_weight(sample, num_classes)
    assert set(mask.nonzero()[:, 0].tolist()) == counting


@given(_steps(), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_loose_bound_only_adds_columns_of_weight_zero(step, slack: int, seed: int) -> None:
    labels, weights, size = step
    bound = len(set(labels.tolist())) + slack
    exact, loose = (
        federated_columns(
            labels,
            weights,
            size,
            max_present=max_present,
            generator=torch.Generator().manual_seed(seed),
        )
        for max_present in (None, bound)
    )
    assert _counting(loose) == _counting(exact)
    assert len(set(loose.columns_S.tolist())) == len(loose.columns_S)
    expected = min(max(size, min(bound, len(labels))), len(weights) + 1)
    on_meta = federated_columns(labels.to("meta"), weights.to("meta"), size, max_present=bound)
    assert len(loose.columns_S) == len(on_meta.columns_S) == expected


def test_background_takes_one_of_the_places() -> None:
    weights = torch.ones(30)
    without = federated_columns(torch.tensor([3, 5]), weights, 10)
    with_background = federated_columns(torch.tensor([3, 5, 30]), weights, 10)
    assert len(_counting(without)) == 10
    assert len(_counting(with_background)) == 9


def test_many_labels_are_all_kept_and_none_is_drawn() -> None:
    labels = torch.arange(60)
    assert _counting(federated_columns(labels, torch.ones(100), 50)) == set(range(60))


def test_small_vocabulary_counts_what_it_has() -> None:
    sample = federated_columns(torch.tensor([12]), torch.ones(12), 50)
    assert _counting(sample) == set(range(12))


def test_fixed_set() -> None:
    sample = ColumnSample.fixed(torch.tensor([4, 1, 9]), num_classes=9)
    assert _counting(sample) == {4, 1}
    assert federated_class_weight(sample, 9).tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_draws_repeat_with_the_seed_and_differ_without() -> None:
    labels, weights = torch.tensor([0]), torch.rand(500) + 0.1
    draws = [
        federated_columns(labels, weights, 20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0].columns_S.tolist() == draws[1].columns_S.tolist()
    assert draws[0].columns_S.tolist() != draws[2].columns_S.tolist()


def test_distribution_is_that_of_drawing_one_after_another() -> None:
    """Inclusion probabilities of two draws without replacement, by listing all orders."""
    weights = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = torch.zeros(4)
    for first, second in permutations(range(4), 2):
        total = weights.sum()
        chance = weights[first] / total * weights[second] / (total - weights[first])
        expected[first] += chance
        expected[second] += chance
    trials = 6000
    waits = torch.stack([draw_order(weights) for _ in range(trials)])
    drawn = torch.zeros(trials, 4).scatter_(1, waits.topk(2, dim=1).indices, 1.0)
    torch.testing.assert_close(drawn.mean(dim=0), expected, atol=0.025, rtol=0)


def test_huge_and_tiny_weights_stay_finite() -> None:
    order = draw_order(torch.tensor([1e38, 1e-38, 0.0]).repeat(2000))
    assert torch.isfinite(order).all()
    assert (order.reshape(-1, 3)[:, 2] == 0).all()


@pytest.mark.parametrize("size", [0, 3])
def test_no_regions(size: int) -> None:
    sample = federated_columns(torch.zeros(0, dtype=torch.int64), torch.ones(5), size)
    assert len(_counting(sample)) == size
