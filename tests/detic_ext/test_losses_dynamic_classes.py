"""Class subsets of one step: numbering, rule of the draw."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.dynamic_classes import ClassSubset, sample_class_subset
from ext_common.errors import ConfigError

CPU = torch.device("cpu")


@given(st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_numbering(num_classes: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, num_classes - 1), unique=True))
    subset = ClassSubset.of(ids, num_classes)
    assert subset.num_classes == len(ids)
    assert subset.columns(CPU).tolist() == [*ids, num_classes]
    mapped = subset.map_labels(torch.arange(num_classes + 1)).tolist()
    for label in range(num_classes + 1):
        assert mapped[label] == (ids.index(label) if label in ids else len(ids))
    assert subset.map_label_lists([ids, []]) == [list(range(len(ids))), []]


@pytest.mark.parametrize("ids", [[0, 0], [-1], [4]])
def test_other_class_numbers_are_refused(ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="distinct classes below 4"):
        ClassSubset.of(ids, 4)


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.integers(0, 14),
    st.one_of(st.none(), st.lists(st.sampled_from([0.0, 2.0, 9.0]), min_size=10, max_size=10)),
)
@settings(max_examples=100, deadline=None)
def test_the_rule(present: list[int], size: int, weights: list[float] | None) -> None:
    weight_C = None if weights is None else torch.tensor(weights)
    subset = sample_class_subset(present, size, 10, weight_C=weight_C)
    ids, kept = subset.class_ids_S.tolist(), sorted(set(present))
    assert ids[: len(kept)] == kept
    drawable = {c for c in range(10) if weights is None or weights[c] > 0} - set(kept)
    assert set(ids[len(kept) :]) <= drawable
    assert len(ids) - len(kept) == min(max(size - len(kept), 0), len(drawable))
    assert weights is None or weight_C.tolist() == weights  # the caller's tensor is untouched


def test_loss_on_the_subset_equals_the_full_loss_weighted_by_it() -> None:
    logits, labels = torch.randn(9, 8), torch.tensor([0, 3, 6, 7, 7, 7, 3, 0, 7])
    subset = sample_class_subset([0, 3, 6], 5, 7)
    small = BoxClassificationLoss()(
        KnownLogits(logits[:, subset.columns(CPU)]), subset.map_labels(labels)
    )
    weights = torch.zeros(7).index_fill_(0, subset.class_ids_S, 1.0)
    full = BoxClassificationLoss(ignore_unseen=True)(
        KnownLogits(logits), labels, freq_weight_C=weights
    )
    torch.testing.assert_close(small, full)
