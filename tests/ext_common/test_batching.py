from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ext_common.data.batching import BatchPlan, PlanState, Ticket, batch_per_process
from ext_common.data.sampling import IndexStream, PermutationStream, WeightedStream
from ext_common.errors import ConfigError, DatasetError


class InOrder(IndexStream):
    """0, 1, ..., size - 1 and again."""

    def chunk(self, number: int) -> NDArray[np.int64]:
        return np.arange(self.size)

    def locate(self, position: int) -> tuple[int, int]:
        return divmod(position, self.size)


def steps(plan: BatchPlan, count: int, state: PlanState | None = None) -> list[Any]:
    return list(islice(plan.steps(state), count))


def batches_of(plan: BatchPlan, count: int) -> list[list[list[int]]]:
    return [[[t.record for t in b] for b in batches] for batches, _ in steps(plan, count)]


def one_group(size: int) -> NDArray[np.int64]:
    return np.zeros(size, dtype=np.int64)


def test_without_groups_batches_are_the_stream_cut_in_pieces() -> None:
    plan = BatchPlan(InOrder(10, 0), one_group(10), [3])
    assert batches_of(plan, 4) == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, 0, 1]]]


def test_a_batch_has_one_group_and_comes_when_it_is_complete() -> None:
    plan = BatchPlan(InOrder(6, 0), np.array([0, 1, 0, 1, 1, 0]), [3, 2])
    assert batches_of(plan, 4) == [[[1, 3]], [[0, 2, 5]], [[4, 1]], [[3, 4]]]


def test_processes_share_one_batch_or_take_batches_in_turn() -> None:
    groups = np.array([0, 1, 0, 1, 1, 1, 0, 0])
    together = BatchPlan(InOrder(8, 0), groups, [2, 2], processes=2)
    assert batches_of(together, 2) == [[[1, 4], [3, 5]], [[0, 6], [2, 7]]]
    in_turn = BatchPlan(InOrder(8, 0), groups, [2, 2], processes=2, same_group=False)
    assert batches_of(in_turn, 2) == [[[0, 2], [1, 3]], [[4, 5], [6, 7]]]


@given(
    seed=st.integers(0, 1000),
    processes=st.integers(1, 4),
    same_group=st.booleans(),
    cut=st.integers(0, 12),
)
@settings(max_examples=40, deadline=None)
def test_a_plan_continues_from_any_step(
    seed: int, processes: int, same_group: bool, cut: int
) -> None:
    groups = np.random.default_rng(seed).integers(0, 3, 11)

    def plan(stream_seed: int = seed) -> BatchPlan:
        stream = WeightedStream(np.ones(11), stream_seed)
        return BatchPlan(stream, groups, [1, 2, 3], processes=processes, same_group=same_group)

    whole = steps(plan(), 20)
    state = whole[cut - 1][1] if cut else PlanState()
    saved = plan().state_dict(state)
    continued, restored = plan(seed + 1).restored(saved)
    assert steps(continued, 20 - cut, restored) == whole[cut:]


def test_a_state_is_plain_and_loads_without_code(tmp_path: Any) -> None:
    plan = BatchPlan(PermutationStream(9, 5), np.arange(9) % 2, [2, 3])
    _, state = steps(plan, 3)[-1]
    path = tmp_path / "state.pth"
    torch.save(plan.state_dict(state), path)
    assert plan.restored(torch.load(path, weights_only=True))[1] == state


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_step_has_the_same_samples_for_any_number_of_processes(processes: int) -> None:
    groups = np.arange(30) % 2

    def samples(count: int) -> list[set[Ticket]]:
        size = 8 // count
        plan = BatchPlan(PermutationStream(30, 1), groups, [size] * 2, processes=count)
        return [{t for batch in batches for t in batch} for batches, _ in steps(plan, 9)]

    assert samples(processes) == samples(1)


@pytest.mark.parametrize("same_group", [True, False])
def test_other_numbers_of_processes_continue_the_global_order(same_group: bool) -> None:
    groups = np.arange(30) % 3

    def plan(processes: int) -> BatchPlan:
        stream = PermutationStream(30, 1)
        return BatchPlan(stream, groups, [2] * 3, processes=processes, same_group=same_group)

    before = steps(plan(4), 3)
    after = steps(plan(1), 40, before[-1][1])
    used = [t.position for found in (before, after) for bs, _ in found for b in bs for t in b]
    last = after[-1][1]
    # every sample of the global order once: in a batch, or waiting for one
    assert sorted(used + [t.position for t in last.pending]) == list(range(last.position))


def test_smaller_batches_use_up_what_was_waiting() -> None:
    groups = one_group(10)
    state = PlanState(position=5, pending=tuple(Ticket(p, p) for p in range(5)))
    plan = BatchPlan(InOrder(10, 0), groups, [2])
    found = steps(plan, 3, state)
    assert [[t.record for t in batches[0]] for batches, _ in found] == [[0, 1], [2, 3], [4, 5]]
    assert [s.position for _, s in found] == [5, 5, 6]
    assert found[0][1].pending == tuple(Ticket(p, p) for p in (2, 3, 4))


def test_states_of_other_data_are_refused() -> None:
    plan = BatchPlan(InOrder(10, 0), one_group(10), [2])
    saved = plan.state_dict(PlanState(4))
    other = BatchPlan(InOrder(11, 0), one_group(11), [2])
    with pytest.raises(DatasetError, match="have 11 images; the interrupted run had 10"):
        other.restored(saved)
    with pytest.raises(DatasetError, match="unknown format 9"):
        plan.restored({**saved, "format": 9})


def test_batch_sizes_fit_the_processes() -> None:
    assert batch_per_process(8, 4) == 2
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 2 is less than one image for each of 4"):
        batch_per_process(2, 4)
    with pytest.raises(ConfigError, match="cannot be divided among 3 processes"):
        batch_per_process(8, 3)
    with pytest.raises(ConfigError, match="not all 1 or more"):
        BatchPlan(InOrder(4, 0), one_group(4), [0])
