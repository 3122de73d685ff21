"""Cases 31 to 35 of docs/reliability.md: checkpoints and weights."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ext_common import atomic_file, checkpoint_files
from ext_common.checkpoint import Checkpointer, load_model_weights
from ext_common.checkpoint_hooks import CheckpointHook
from ext_common.checkpoint_retention import remove_older
from ext_common.errors import WeightsError
from ext_common.weights_io import load_tensors
from tests.faults.killed_run import in_new_process


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
    "before the side file": (checkpoint_files, "sha256_of", die),
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
