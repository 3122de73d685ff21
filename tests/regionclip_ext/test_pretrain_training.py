"""Pretraining through the common trainer: it learns, resumes exactly, and keeps the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from ext_common.trainer import ExtTrainer
from tests.regionclip_ext.pair_files import write_tsv
from tests.regionclip_ext.pretrain_cases import random_config


def _config(folder: Path, output: str) -> CfgNode:
    cfg = random_config(folder)
    cfg.OUTPUT_DIR = str(folder / output)
    cfg.DATALOADER.NUM_WORKERS = 0
    solver = cfg.SOLVER
    solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS = 2, 4, (3,)
    solver.BASE_LR, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD = 0.01, 1, 2
    solver.ACCUMULATE = 2
    solver.AMP.ENABLED, solver.AMP.DTYPE = True, "bfloat16"
    return cfg


def _train(cfg: CfgNode, *, resume: bool = False) -> Any:
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = ExtTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return before, trainer.model.state_dict()


@pytest.mark.timeout(900)
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    write_tsv(tmp_path / "tsv", 7)
    before, whole = _train(_config(tmp_path, "whole"))
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert changed
    assert all(name.startswith("backbone.") for name in changed)
    first = _config(tmp_path, "parts")
    first.SOLVER.TRAIN_ITER = 2
    _train(first)
    torch.manual_seed(99)  # a new process starts anywhere
    _, resumed = _train(_config(tmp_path, "parts"), resume=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
