"""Cases 36 and 39 of docs/reliability.md: killed runs continue, and so do several processes."""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ext_common.data.batching import BatchPlan, PlanState
from ext_common.data.sampling import PermutationStream
from ext_common.launch import launch
from tests.dist.tiny_training import write_run
from tests.faults.killed_run import (
    Kill,
    final_weights,
    in_new_process,
    read_diary,
    train,
    write_mixed_data,
    write_mixed_run,
)
from tests.faults.two_processes import record_all

ITERATIONS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with boxes and pictures with image labels."""
    folder = tmp_path_factory.mktemp("mixed") / "data"
    write_mixed_data(folder)
    return folder


@pytest.fixture(scope="module")
def whole(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[int, str], dict[str, Tensor]]:
    """Losses and final weights of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = write_mixed_run(folder / "run", data, iterations=ITERATIONS)
    assert train(run, folder / "diary.txt") == 0
    return read_diary(folder / "diary.txt"), final_weights(run)


def test_case_36_the_run_has_what_a_resume_can_get_wrong(
    whole: tuple[dict[int, str], dict[str, Tensor]],
) -> None:
    losses, weights = whole
    assert list(losses) == list(range(ITERATIONS))
    assert len(set(losses.values())) == ITERATIONS
    # batches of two pictures with boxes, and of three with image labels, in a random order
    sizes = [line.split(" ")[0].count(",") + 1 for line in losses.values()]
    assert set(sizes) == {2, 3}
    assert any(name.endswith("running_var") for name in weights)


@pytest.mark.parametrize("workers", [0, 2])
def test_case_36_killed_three_times_at_any_moment_the_run_is_the_uninterrupted_one(
    tmp_path: Path, data: Path, workers: int, whole: tuple[dict[int, str], dict[str, Tensor]]
) -> None:
    run = write_mixed_run(tmp_path / "run", data, iterations=ITERATIONS, workers=workers)
    diary = tmp_path / "diary.txt"
    draw = random.Random(workers)
    for iteration in sorted(draw.sample(range(ITERATIONS - 4), 3)):
        # in the middle of a step, of a save, or of reading ahead
        kill = Kill(iteration, delay=draw.uniform(0.0, 0.25))
        assert train(run, diary, kill) == -signal.SIGKILL
    assert train(run, diary) == 0
    losses, weights = whole
    assert read_diary(diary) == losses
    found = final_weights(run)
    assert found.keys() == weights.keys()
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_case_36_any_number_of_processes_walks_through_the_same_order() -> None:
    def plan(processes: int) -> BatchPlan:
        groups_N = np.zeros(10, dtype=np.int64)
        return BatchPlan(PermutationStream(10, 5), groups_N, [8 // processes], processes=processes)

    def walk(processes: int, state: PlanState, count: int) -> tuple[list[Any], PlanState]:
        seen = []
        for batches, after in plan(processes).steps(state):
            # the samples of a step, in their global order
            seen.append(sorted(ticket for batch in batches for ticket in batch))
            state = after
            if len(seen) == count:
                break
        return seen, state

    whole, _ = walk(1, PlanState(), 6)
    first, state = walk(2, PlanState(), 3)
    then, _ = walk(4, state, 3)
    assert first + then == whole


@pytest.fixture(scope="module")
def recorded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Steps of ``boxes1`` and ``mixed1`` in one process, ``boxes2`` and ``mixed2`` in two.

    The runs with boxes continue one that a single process began.
    """
    folder = tmp_path_factory.mktemp("recorded")
    mixed = write_mixed_run(folder / "mixed", data, iterations=8)
    # nothing is drawn at random in this model, so that losses can be compared
    boxes = write_run(folder, SOLVER={"IMS_PER_BATCH": 4, "MAX_ITER": 6, "TRAIN_ITER": 2})
    assert train(boxes, folder / "diary.txt") == 0
    files = {str(boxes.config_file): "boxes", str(mixed.config_file): "mixed"}
    for processes, steps in ((1, 6), (2, 3)):
        results = {name: str(folder / f"{kind}{processes}") for name, kind in files.items()}
        args = argparse.Namespace(
            num_gpus=processes, num_machines=1, machine_rank=0, dist_url="auto", opts=[]
        )
        args.runs, args.steps = results, steps
        assert in_new_process(functools.partial(_launch, args)) == 0
    names = [f"{kind}{processes}" for kind in files.values() for processes in (1, 2)]
    return {name: json.loads((folder / name).read_text()) for name in names}


def _launch(args: argparse.Namespace) -> None:
    launch(record_all, args, device="cpu")


@pytest.mark.timeout(600)
def test_case_36_two_processes_continue_what_one_began(recorded: dict[str, Any]) -> None:
    (one,), two = recorded["boxes1"], recorded["boxes2"]
    for step in range(3):
        of_ranks = [of_rank[step] for of_rank in two]
        assert sorted(sum((seen["images"] for seen in of_ranks), [])) == sorted(one[step]["images"])
        means = {
            name: sum(seen["losses"][name] for seen in of_ranks) / 2 for name in one[step]["losses"]
        }
        assert means == pytest.approx(one[step]["losses"], rel=1e-3)


@pytest.mark.timeout(600)
def test_case_36_two_processes_see_mixed_batches_in_the_order_of_one(
    recorded: dict[str, Any],
) -> None:
    (one,), two = recorded["mixed1"], recorded["mixed2"]
    # batches of one kind each are dealt to the processes in turn
    dealt = [two[rank][step]["images"] for step in range(3) for rank in range(2)]
    assert dealt == [seen["images"] for seen in one]
    # the same weights, batch and random numbers
    assert two[0][0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-4)


@pytest.mark.timeout(600)
def test_case_39_boxes_on_one_process_and_image_labels_on_the_other(
    recorded: dict[str, Any],
) -> None:
    first, second = recorded["mixed2"]
    sizes = [(len(a["images"]), len(b["images"])) for a, b in zip(first, second, strict=True)]
    assert any(set(pair) == {2, 3} for pair in sizes), "no step had both kinds"
    for a, b in zip(first, second, strict=True):
        assert a["losses"].keys() == b["losses"].keys()
        assert all(math.isfinite(value) for seen in (a, b) for value in seen["losses"].values())
        assert a["weights"] == b["weights"]
