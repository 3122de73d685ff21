from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from torch import nn

from ext_common import checkpoint_files
from ext_common.checkpoint import Checkpointer
from ext_common.checkpoint_files import plain_value, side_file_of, write_checkpoint
from ext_common.errors import WeightsError
from ext_common.train_state import RandomState
from tests.ext_common.small_detector import Detector, randomised, same, words


def run_state(folder: Path, seed: int = 1) -> tuple[Checkpointer, nn.Module, torch.optim.Optimizer]:
    model = randomised(Detector(vocabulary=words("a", "b")), seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    checkpointer = Checkpointer(
        model, folder, parts={"optimizer": optimizer}, process_parts={"random": RandomState()}
    )
    return checkpointer, model, optimizer


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad()
    model.head(torch.rand(3, 2)).sum().backward()
    optimizer.step()


def test_a_resumed_run_continues_bit_by_bit(tmp_path: Path) -> None:
    checkpointer, model, optimizer = run_state(tmp_path)
    take_step(model, optimizer)
    checkpointer.save("model_0000000", iteration=0)
    take_step(model, optimizer)
    again, other, other_optimizer = run_state(tmp_path, seed=5)
    assert again.resume() == {"iteration": 0}
    take_step(other, other_optimizer)
    assert same(model, other)


def test_random_generators_are_restored() -> None:
    state = RandomState().state_dict()

    def draw() -> list[float]:
        return [random.random(), float(torch.rand(())), float(np.random.rand()), random.gauss(0, 1)]  # noqa: NPY002

    first = draw()
    RandomState().load_state_dict(state)
    assert draw() == first


def test_detectron2_reads_our_checkpoints_with_tensors_only(tmp_path: Path) -> None:
    checkpointer, model, _ = run_state(tmp_path)
    checkpointer.save("model_final", iteration=9)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert content["vocabulary"]["names"] == ["a", "b"]
    target = Detector(vocabulary=words("a", "b"))
    reader = DetectionCheckpointer(target, str(tmp_path))
    reader.resume_or_load("", resume=True)
    assert same(model, target)


def test_detectron2s_periodic_hook_saves_through_it(tmp_path: Path) -> None:
    checkpointer, _, _ = run_state(tmp_path)
    hook = PeriodicCheckpointer(checkpointer, 2, max_iter=3)
    for iteration in range(3):
        hook.step(iteration)
    saved = {path.name for path in tmp_path.glob("*.pth")}
    assert saved == {"model_0000001.pth", "model_final.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    checkpointer, _, _ = run_state(tmp_path)
    checkpointer.save("model_0000004", iteration=4)
    checkpointer.save("model_0000009", iteration=9)
    return tmp_path / "model_0000004.pth", tmp_path / "model_0000009.pth"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def resumed_iteration(folder: Path) -> int:
    found = run_state(folder)[0].resume()
    assert found is not None
    return int(found["iteration"])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
)
def test_damage_falls_back_to_the_newest_whole_checkpoint(
    two_checkpoints: tuple[Path, Path], damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = two_checkpoints
    assert resumed_iteration(newest.parent) == 9
    damage(newest)
    assert resumed_iteration(newest.parent) == 4
    assert (str(newest) in caplog.text) == newest.exists()


def test_a_flipped_bit_is_found_without_the_side_file_too(
    two_checkpoints: tuple[Path, Path],
) -> None:
    _, newest = two_checkpoints
    side_file_of(newest).unlink()
    assert resumed_iteration(newest.parent) == 9
    flip_a_bit(newest)
    assert resumed_iteration(newest.parent) == 4


@pytest.mark.parametrize("content", ["", "model_0000123.pth", "../elsewhere.pth"])
def test_the_last_checkpoint_file_may_be_empty_or_stale(
    two_checkpoints: tuple[Path, Path], content: str
) -> None:
    folder = two_checkpoints[0].parent
    (folder / "last_checkpoint").write_text(content)
    assert resumed_iteration(folder) == 9
    (folder / "last_checkpoint").unlink()
    assert resumed_iteration(folder) == 9


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"iteration": "x"}'])
def test_a_damaged_side_file_condemns_nothing(
    two_checkpoints: tuple[Path, Path], content: str
) -> None:
    _, newest = two_checkpoints
    side_file_of(newest).write_text(content)
    assert resumed_iteration(newest.parent) == 9


def test_only_damaged_checkpoints_are_an_error_and_the_next_call_works(
    two_checkpoints: tuple[Path, Path],
) -> None:
    whole = [path.read_bytes() for path in two_checkpoints]
    for path in two_checkpoints:
        flip_a_bit(path)
    checkpointer, model, _ = run_state(two_checkpoints[0].parent)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="none of its 2 checkpoints"):
        checkpointer.resume()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for path, content in zip(two_checkpoints, whole, strict=True):
        path.write_bytes(content)
    assert checkpointer.resume() == {"iteration": 9}


def test_an_empty_folder_has_nothing_to_resume(tmp_path: Path) -> None:
    (tmp_path / "pretrained.pth").write_bytes(b"of somebody else")
    assert run_state(tmp_path)[0].resume() is None
    assert run_state(tmp_path / "none")[0].resume() is None


def test_a_run_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    Checkpointer(Detector(width=5), tmp_path).save("model_0000000", iteration=0)
    with pytest.raises(WeightsError, match="mis-shaped"):
        Checkpointer(Detector(width=3), tmp_path).resume()


def test_a_run_of_another_optimizer_is_an_explained_error(tmp_path: Path) -> None:
    run_state(tmp_path)[0].save("model_0000000", iteration=0)
    model = Detector(vocabulary=words("a", "b"))
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    with pytest.raises(WeightsError, match="optimizer: cannot be restored"):
        Checkpointer(model, tmp_path, parts={"optimizer": optimizer}).resume()


@pytest.mark.parametrize("fails_in", ["save_tensors_atomic", "_write_text"])
def test_a_full_disk_keeps_the_older_checkpoints(
    two_checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = two_checkpoints[0].parent
    checkpointer, _, _ = run_state(folder)
    monkeypatch.setattr(checkpoint_files, fails_in, full)
    with pytest.raises(WeightsError, match="No space left"):
        checkpointer.save("model_0000009", iteration=9)
    monkeypatch.undo()
    assert resumed_iteration(folder) == 9
    flip_a_bit(two_checkpoints[1])
    assert resumed_iteration(folder) == 4


def test_the_side_file_says_what_it_proves(two_checkpoints: tuple[Path, Path]) -> None:
    record = json.loads(side_file_of(two_checkpoints[1]).read_text())
    assert record["iteration"] == 9
    assert record["size"] == two_checkpoints[1].stat().st_size
    assert len(record["sha256"]) == 64


def test_states_hold_tensors_and_plain_values_only(tmp_path: Path) -> None:
    state = {"iteration": 0, "extra": {"rate": np.float64(0.5), "pair": (1, None)}}
    write_checkpoint({"model": {}, **state}, tmp_path / "a.pth")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["extra"] == {"rate": 0.5, "pair": (1, None)}
    with pytest.raises(WeightsError, match=r"extra\.list\[1\].*Detector"):
        write_checkpoint(
            {"model": {}, "iteration": 0, "extra": {"list": [1, Detector()]}}, tmp_path / "b.pth"
        )
    assert not (tmp_path / "b.pth").exists()
    with pytest.raises(WeightsError, match="NumPy array"):
        plain_value(np.zeros(2), "x")
