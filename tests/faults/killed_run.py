"""Small trainings in forked processes that are killed, and what they wrote down until then."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils.tensorboard  # here once: importing it in every fork takes seconds
import yaml
from detectron2.engine import HookBase

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.trainer import ExtTrainer
from tests.dist.tiny_training import TinyRun
from tools import train_net
from tools.demo_data.manifest import Settings
from tools.demo_data.writer import write_dataset

REPOSITORY = Path(__file__).parents[2]

# the demo's mixed training with a network of a few thousand weights
MIXED_MODEL: dict[str, Any] = {
    "WEIGHTS": "",
    "RESNETS": {
        "DEPTH": 50,
        "WIDTH_PER_GROUP": 4,
        "STEM_OUT_CHANNELS": 8,
        "RES2_OUT_CHANNELS": 16,
    },
    "FPN": {"OUT_CHANNELS": 16},
    "RPN": {"BATCH_SIZE_PER_IMAGE": 16, "POST_NMS_TOPK_TRAIN": 30},
    "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
    "ROI_BOX_HEAD": {"NUM_FC": 1, "FC_DIM": 16, "POOLER_RESOLUTION": 3, "WS_NUM_PROPS": 8},
    "ROI_MASK_HEAD": {"NUM_CONV": 1, "CONV_DIM": 8, "POOLER_RESOLUTION": 7},
}


def write_mixed_data(folder: Path) -> None:
    """A few pictures of the demo dataset: with boxes, and with image labels."""
    write_dataset(folder, Settings(train=6, val=1, labels=12, size=96, seed=0))


def write_mixed_run(
    folder: Path, data: Path, *, iterations: int, workers: int = 0, **solver: Any
) -> TinyRun:
    """Detic's training on batches of boxes and batches of image labels.

    Batch norms, proposals, sizes, crops and flips: everything that a resume must restore is in it.
    A checkpoint every two iterations.
    """
    folder.mkdir()
    content = {
        "_BASE_": str(REPOSITORY / "configs" / "demo" / "Detic_demo.yaml"),
        "MODEL": MIXED_MODEL,
        "DATASETS": {"REGISTRY": [str(data / "datasets.yaml")], "TEST": []},
        "DATALOADER": {
            "NUM_WORKERS": workers,
            "DATASET_BS": [2, 3],
            "DATASET_INPUT_SIZE": [64, 48],
        },
        "SOLVER": {
            "IMS_PER_BATCH": 2,
            "MAX_ITER": iterations,
            "WARMUP_ITERS": 3,
            "CHECKPOINT_PERIOD": 2,
            "CHECKPOINT_KEEP_LAST": 2,
            **solver,
        },
        "OUTPUT_DIR": str(folder / "output"),
        "SEED": 3,
    }
    path = folder / "mixed.yaml"
    path.write_text(yaml.safe_dump(content))
    return TinyRun(path, folder / "output", data, "demo_val")


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


class Kill(NamedTuple):
    """When a run is to be killed: this many seconds after it has done this iteration."""

    iteration: int
    delay: float


class _Diary(HookBase):
    """Writes down every step, and waits for the death that was promised."""

    def __init__(self, file: Path, kill: Kill | None) -> None:
        self._file = file
        self._hold_at = kill.iteration + 4 if kill else -1

    def before_step(self) -> None:
        if self.trainer.iter == self._hold_at:
            time.sleep(600)

    def after_step(self) -> None:
        step = self.trainer._recorder._steps[-1]
        values = " ".join(value.hex() for value in step.losses.values_K.double().tolist())
        images = ",".join(self.trainer._last_images)
        names = ",".join(step.losses.names)
        with self._file.open("a") as stream:
            stream.write(f"{step.iteration} {images} {names} {values}\n")


def train(run: TinyRun, diary: Path, kill: Kill | None = None) -> int:
    """Train in a new process; see :func:`in_new_process`. A run that exists is resumed."""

    packages.register_all()  # imports, once for all forks

    def action() -> None:
        cfg = load_config(run.config_file)
        register_from_config(cfg)
        trainer = ExtTrainer(cfg)
        # the diary reads what the recorder has not handed over yet
        trainer._hooks.insert(0, hook := _Diary(diary, kill))
        hook.trainer = trainer
        trainer.resume_or_load(resume=True)
        trainer.train()

    if kill is None:
        return in_new_process(action)
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    while process.is_alive() and last_iteration(diary) < kill.iteration:
        time.sleep(0.002)
    time.sleep(kill.delay)
    process.kill()
    process.join()
    return process.exitcode or 0


def last_iteration(diary: Path) -> int:
    """Number of the newest entry, -1 if there is none."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return int(lines[-1].split(" ", 1)[0]) if lines else -1


def read_diary(diary: Path) -> dict[int, str]:
    """Images and losses by iteration, bit by bit; what was done twice must have been the same."""
    found: dict[int, str] = {}
    for line in diary.read_text().splitlines():
        number, losses = line.split(" ", 1)
        assert found.setdefault(int(number), losses) == losses, f"iteration {number} differs"
    return found


def final_weights(run: TinyRun) -> dict[str, torch.Tensor]:
    """The model at the end of the run."""
    weights: dict[str, torch.Tensor] = torch.load(run.output / "model_final.pth")["model"]
    return weights
