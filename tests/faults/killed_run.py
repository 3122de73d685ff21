"""A small training in a forked process that kills itself, and what it wrote down until then."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # here once: importing it in every fork takes seconds
from detectron2.engine import HookBase

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.trainer import ExtTrainer
from tests.dist.tiny_training import MODEL, TinyRun, write_run
from tools import train_net

# unlike the other tests' model, this one draws anchors, proposals, sizes and flips at random
RANDOM_MODEL: dict[str, Any] = {
    **MODEL,
    "RPN": {**MODEL["RPN"], "BATCH_SIZE_PER_IMAGE": 8, "POST_NMS_TOPK_TRAIN": 30},
    "ROI_HEADS": {**MODEL["ROI_HEADS"], "BATCH_SIZE_PER_IMAGE": 8, "POSITIVE_FRACTION": 0.5},
}


def write_random_run(folder: Path, iterations: int, workers: int = 0) -> TinyRun:
    """A tiny training with random choices everywhere and a checkpoint every two iterations."""
    folder.mkdir()
    return write_run(
        folder,
        MODEL=RANDOM_MODEL,
        INPUT={"MIN_SIZE_TRAIN": [48, 64], "RANDOM_FLIP": "horizontal"},
        DATALOADER={"NUM_WORKERS": workers},
        SOLVER={"MAX_ITER": iterations, "CHECKPOINT_PERIOD": 2, "CHECKPOINT_KEEP_LAST": 2},
    )


def in_new_process(action: Callable[[], None]) -> int:
    """Run something in a fork of this process.

    Returns:
        Its exit code, or minus the signal that ended it.
    """
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_tool(words: list[str], errors: Path, trainer: type[ExtTrainer] = ExtTrainer) -> None:
    """tools/train_net.py in this process, which must be one made for it; does not return."""
    os.setsid()
    with errors.open("w") as stream:
        os.dup2(stream.fileno(), 2)
        sys.stderr = stream
        train_net.ExtTrainer = trainer  # type: ignore[misc]
        code = train_net.main(words)
        stream.flush()
    sys.exit(code)


class _Diary(HookBase):
    """Writes down every step, and ends the process without warning before one of them."""

    def __init__(self, file: Path, kill_at: int) -> None:
        self._file = file
        self._kill_at = kill_at

    def before_step(self) -> None:
        if self.trainer.iter == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self) -> None:
        step = self.trainer._recorder._steps[-1]
        values = " ".join(value.hex() for value in step.losses.values_K.double().tolist())
        with self._file.open("a") as stream:
            stream.write(f"{step.iteration} {values}\n")


def train(run: TinyRun, diary: Path, *, kill_at: int = -1) -> int:
    """Train in a new process; see :func:`in_new_process`. A run that exists is resumed."""

    packages.register_all()  # imports, once for all forks

    def action() -> None:
        cfg = load_config(run.config_file)
        register_from_config(cfg)
        trainer = ExtTrainer(cfg)
        # the diary reads what the recorder has not handed over yet
        trainer._hooks.insert(0, hook := _Diary(diary, kill_at))
        hook.trainer = trainer
        trainer.resume_or_load(resume=True)
        trainer.train()

    return in_new_process(action)


def read_diary(diary: Path) -> dict[int, str]:
    """Losses by iteration, bit by bit; an iteration that was done twice must have been the same."""
    found: dict[int, str] = {}
    for line in diary.read_text().splitlines():
        number, losses = line.split(" ", 1)
        assert found.setdefault(int(number), losses) == losses, f"iteration {number} differs"
    return found


def final_weights(run: TinyRun) -> dict[str, torch.Tensor]:
    """The model at the end of the run."""
    weights: dict[str, torch.Tensor] = torch.load(run.output / "model_final.pth")["model"]
    return weights
