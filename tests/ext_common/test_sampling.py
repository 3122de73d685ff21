from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common.data.sampling import (
    IndexStream,
    PermutationStream,
    RepeatFactorStream,
    WeightedStream,
    box_labels,
    repeat_factors,
    tag_labels,
)
from ext_common.errors import DatasetError
from tests.golden_cases import golden_arrays


def take(stream: IndexStream, start: int, count: int) -> list[int]:
    return list(islice(stream.indices(start), count))


def streams(seed: int) -> list[IndexStream]:
    return [
        PermutationStream(7, seed),
        RepeatFactorStream([1.0, 2.5, 1.2, 0.0, 0.3], seed),
        WeightedStream([1.0, 0.0, 3.0], seed),
    ]


@pytest.mark.golden
def test_golden_tag_repeat_factors() -> None:
    case = golden_arrays("detic", "sampler_weights.npz")
    dicts = json.loads(str(case["dicts_json"]))
    tags = [entry["cats"] for entry in dicts if entry["dataset_source"] == 1]
    factors = repeat_factors(tags, float(case["repeat_threshold"]))
    np.testing.assert_allclose(factors, case["tag_rep_factors"], rtol=1e-4)


@given(
    labels=st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=40),
    threshold=st.floats(1e-3, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_repeat_factors_equal_detectron2s(labels: list[list[int]], threshold: float) -> None:
    records = [{"annotations": [{"category_id": c} for c in found]} for found in labels]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold)
    ours = repeat_factors(map(box_labels, records), threshold)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_repeat_factors_without_the_root() -> None:
    factors = repeat_factors([[0], [0], [0], [0, 1]], 0.5, root=False)
    np.testing.assert_allclose(factors, [1, 1, 1, 2])


def test_labels_of_records() -> None:
    assert box_labels({"annotations": [{"category_id": 3}, {"category_id": 3}]}) == [3, 3]
    assert tag_labels({"pos_category_ids": [1, 2]}) == [1, 2]
    assert box_labels({}) == tag_labels({}) == []


@given(seed=st.integers(0, 2**40), start=st.integers(0, 60_000), kind=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_an_element_depends_on_seed_and_position_alone(seed: int, start: int, kind: int) -> None:
    start = start if kind == 2 else start % 300
    stream = streams(seed)[kind]
    whole = take(stream, 0, start + 20)
    assert take(stream, start, 20) == whole[start:]
    assert take(streams(seed)[kind], start, 20) == whole[start:]
    assert take(streams(seed + 1)[kind].reseeded(seed), start, 20) == whole[start:]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_seeds_and_chunks_give_other_orders(kind: int) -> None:
    stream = streams(3)[kind]
    assert take(stream, 0, 200) != take(streams(4)[kind], 0, 200)
    assert stream.chunk(0).tolist() != stream.chunk(1).tolist()


def test_a_permutation_shows_every_item_once_per_chunk() -> None:
    order = take(PermutationStream(7, 0), 0, 21)
    for start in (0, 7, 14):
        assert sorted(order[start : start + 7]) == list(range(7))


def test_repeats_are_their_factors_on_average() -> None:
    factors = np.array([1.0, 2.5, 1.2, 0.0, 0.3])
    stream = RepeatFactorStream(factors, 0)
    chunks = 2000
    counts = Counter(np.concatenate([stream.chunk(k) for k in range(chunks)]).tolist())
    for item, factor in enumerate(factors):
        # stochastic rounding: floor or ceil each time, binomial deviation below 4 sigma
        rest = factor - math.floor(factor)
        sigma = math.sqrt(max(rest * (1 - rest) * chunks, 1e-9))
        assert abs(counts[item] - factor * chunks) <= 4 * sigma + 1e-6
    lengths = {len(stream.chunk(k)) for k in range(50)}
    assert lengths <= {4, 5, 6, 7}


def test_draws_follow_the_weights() -> None:
    weights = np.array([5.0, 0.0, 1.0, 4.0, 0.0])
    draws = np.bincount(take(WeightedStream(weights, 0), 0, 50_000), minlength=5)
    assert draws[1] == draws[4] == 0
    np.testing.assert_allclose(draws / 50_000, weights / 10, atol=4 * math.sqrt(0.25 / 50_000))


def test_a_draw_at_the_upper_end_is_an_item_with_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    class One:
        def random(self, count: int) -> np.ndarray[Any, Any]:
            return np.ones(count)

    stream = WeightedStream([1.0, 2.0, 0.0], 0)
    monkeypatch.setattr(stream, "_generator", lambda number: One())
    assert set(stream.chunk(0).tolist()) == {1}


def test_more_items_than_torch_multinomial_takes() -> None:
    size = 2**24 + 10
    weights = np.zeros(size)
    weights[[3, -1]] = 1.0
    draws = take(WeightedStream(weights, 0), 0, 400)
    assert set(draws) == {3, size - 1}


@pytest.mark.parametrize(
    "values", [[], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf], [[1.0]]]
)
def test_impossible_weights_are_refused(values: Any) -> None:
    for kind in (WeightedStream, RepeatFactorStream):
        with pytest.raises(DatasetError, match="must be finite|no samples"):
            kind(values, 0)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DatasetError, match="there are no samples"):
        PermutationStream(0, 0)
