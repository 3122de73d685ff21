"""Cases 31 to 36 of docs/reliability.md: checkpoints and exact resume."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import random
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ext_common import atomic_file, checkpoint_files
from ext_common.checkpoint import Checkpointer, load_model_weights
from ext_common.checkpoint_hooks import CheckpointHook
from ext_common.checkpoint_retention import remove_older
from ext_common.data.batching import BatchPlan, PlanState
from ext_common.data.sampling import PermutationStream
from ext_common.errors import WeightsError
from ext_common.weights_io import load_tensors
from tests.faults.killed_run import (
    final_weights,
    in_new_process,
    read_diary,
    train,
    write_random_run,
)


def saved(folder: Path, *iterations: int) -> Checkpointer:
    """Checkpoints of a small model whose weights are the iteration."""
    model = nn.Linear(40, 40)
    checkpointer = Checkpointer(model, folder)
    for iteration in iterations:
        nn.init.constant_(model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer


def resumed(folder: Path) -> int:
    """The iteration that a new process would go on from; the weights must be those of it."""
    checkpointer = Checkpointer(nn.Linear(40, 40), folder)
    rest = checkpointer.resume()
    assert rest is not None
    assert torch.all(checkpointer.model.weight == rest["iteration"])
    return int(rest["iteration"])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def torn_write(path: Path, content: bytes = b"PK\x03\x04 half") -> None:
    path.write_bytes(content)
    die()


MOMENTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "while writing": (torch, "save", lambda _, file: torn_write(Path(file.name))),
    "before the rename": (atomic_file.os, "replace", die),
    "before the side file": (checkpoint_files, "_sha256", die),
    "before last_checkpoint": (checkpoint_files, "LAST_CHECKPOINT", None),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_case_31_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path, moment: str) -> None:
    saved(tmp_path, 4)

    def save_and_die() -> None:
        module, name, replacement = MOMENTS[moment]
        if replacement is None:
            real = checkpoint_files._write_text
            module, name = checkpoint_files, "_write_text"
            replacement = lambda path, text: (  # noqa: E731
                die() if path.name == "last_checkpoint" else real(path, text)
            )
        setattr(module, name, replacement)
        saved(tmp_path, 9)

    assert in_new_process(save_and_die) == -signal.SIGKILL
    # after the rename the new one is whole, and is found although nothing names it
    assert resumed(tmp_path) == (4 if moment in ("while writing", "before the rename") else 9)
    saved(tmp_path, 14)
    assert resumed(tmp_path) == 14
    atomic_file.remove_leftovers(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_case_32_a_full_disk_leaves_the_old_ones_and_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpointer = saved(tmp_path, 1, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Trainer:
        iter, max_iter = 5, 100

    def hook(policy: str) -> CheckpointHook:
        made = CheckpointHook(checkpointer, 2, keep_last=1, on_failure=policy)
        made.trainer = Trainer()  # type: ignore[assignment]
        return made

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"No space left.*free some space|No space.*free space"):
        hook("stop").after_step()
    hook("continue").after_step()
    assert "goes on without a new checkpoint" in caplog.text
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert resumed(tmp_path) == 3
    hook("continue").after_step()  # space again: the new one is proven, then the others go
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000005.pth"]


def test_case_32_old_ones_are_not_purged_for_a_new_one_that_is_not_proven(tmp_path: Path) -> None:
    saved(tmp_path, 1, 3, 5)
    newest = tmp_path / "model_0000005.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert remove_older(tmp_path, 1) == []
    saved(tmp_path, 5)
    assert [path.name for path in remove_older(tmp_path, 2)] == ["model_0000001.pth"]
    assert not (tmp_path / "model_0000001.pth.json").exists()
    assert resumed(tmp_path) == 5


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, functools.partial(Path.write_bytes, data=b"")])
def test_case_33_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 4, 9)
    damage(tmp_path / "model_0000009.pth")
    (tmp_path / "last_checkpoint").write_text("")
    assert resumed(tmp_path) == 4
    assert "model_0000009.pth" in caplog.text


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_case_34_code_in_a_weight_file_is_not_run(tmp_path: Path, suffix: str) -> None:
    path, trap = tmp_path / f"weights{suffix}", tmp_path / "trap"
    content = {"model": {"weight": torch.zeros(1)}, "more": Payload(trap)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        content["model"] = {"weight": np.zeros(1)}
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match="--unsafe-load"):
        load_tensors(path)
    assert not trap.exists()
    load_tensors(path, allow_unsafe=True)
    assert trap.exists()


def test_case_34_our_own_checkpoints_load_as_tensors_only(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    state = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert state["iteration"] == 2


def test_case_35_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    stored = {
        "a.weight": torch.zeros(3, 2),
        "b.weight": torch.ones(2, 2),
        "b.bias": torch.ones(2),
        "c": torch.ones(1),
    }
    torch.save(stored, tmp_path / "w.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as refused:
        load_model_weights(model, tmp_path / "w.pth")
    for part in ("a.bias", "a.weight", "c", "--allow-partial"):
        assert part in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(WeightsError, match="c"):
        load_model_weights(model, tmp_path / "w.pth", allow_partial=["a.*"])
    load_model_weights(model, tmp_path / "w.pth", allow_partial=["a.*", "c"])
    assert torch.equal(model.state_dict()["b.weight"], torch.ones(2, 2))
    assert torch.equal(model.state_dict()["a.bias"], before["a.bias"])


ITERATIONS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], dict[str, Tensor]]:
    """Losses and final weights of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = write_random_run(folder / "run", ITERATIONS)
    assert train(run, folder / "diary.txt") == 0
    losses = read_diary(folder / "diary.txt")
    assert list(losses) == list(range(ITERATIONS))
    assert len(set(losses.values())) == ITERATIONS
    return losses, final_weights(run)


@pytest.mark.parametrize("workers", [0, 2])
def test_case_36_killed_three_times_the_run_is_the_uninterrupted_one(
    tmp_path: Path, workers: int, whole: tuple[dict[int, str], dict[str, Tensor]]
) -> None:
    run, diary = write_random_run(tmp_path / "run", ITERATIONS, workers), tmp_path / "diary.txt"
    for moment in sorted(random.Random(workers).sample(range(1, ITERATIONS), 3)):
        assert train(run, diary, kill_at=moment) == -signal.SIGKILL
    assert train(run, diary) == 0
    losses, weights = whole
    assert read_diary(diary) == losses
    found = final_weights(run)
    assert found.keys() == weights.keys()
    assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_case_36_another_number_of_processes_keeps_the_global_order() -> None:
    total, steps = 4, 6

    def plan(processes: int) -> BatchPlan:
        groups_N = np.arange(11) % 2
        size = total // processes
        return BatchPlan(PermutationStream(11, 3), groups_N, [size, size], processes=processes)

    def walk(processes: int, state: PlanState, count: int) -> tuple[list[Any], PlanState]:
        seen = []
        for batches, after in plan(processes).steps(state):
            # the samples of a step, in their global order
            seen.append(sorted(ticket for batch in batches for ticket in batch))
            state = after
            if len(seen) == count:
                break
        return seen, state

    whole, _ = walk(1, PlanState(), 2 * steps)
    first, state = walk(2, PlanState(), steps)
    then, _ = walk(4, state, steps)
    assert first + then == whole
