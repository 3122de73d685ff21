"""Training through the common trainer: resume, accumulation, the monitor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ext_common.errors import ConfigError
from ext_common.registries import TRAIN_LOADER_REGISTRY
from ext_common.trainer import ExtTrainer
from soco_ext.config_checks import check_soco
from soco_ext.losses.collapse import alignment, embedding_spread, uniformity
from tests.soco_ext.tiny_soco import MadeUpLoader, tiny_config


@pytest.fixture(autouse=True)
def _made_up_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAIN_LOADER_REGISTRY._obj_map, "MadeUp", MadeUpLoader)


def trainer(folder: Path, *words: Any, resume: bool = False) -> ExtTrainer:
    run = ["DATALOADER.SAMPLER_TRAIN", "MadeUp", "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 4]
    run += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.WARMUP_ITERS", 1]
    run += ["SOCO.MONITOR.PERIOD", 2]
    made = ExtTrainer(tiny_config("SoCoFPN", *run, *words))
    made.resume_or_load(resume=resume)
    return made


def weights(run: ExtTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_resumed_run_with_accumulation_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    words = ["SOLVER.ACCUMULATE", 2]
    straight = trainer(tmp_path / "a", *words)
    start = weights(straight)
    straight.train()
    trainer(tmp_path / "b", *words, "SOLVER.TRAIN_ITER", 2).train()
    resumed = trainer(tmp_path / "b", *words, resume=True)
    assert resumed.model.ema_step == 2
    resumed.train()
    assert resumed.model.ema_step == straight.model.ema_step == 4
    ends = weights(straight), weights(resumed)
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
    moved = [name for name, value in ends[0].items() if not torch.equal(value, start[name])]
    assert "encoder.conv1.weight" in moved
    assert "projector_k.linear2.weight" in moved
    check_monitor(tmp_path / "a" / "metrics.json")
    (events,) = (tmp_path / "a").glob("events.out.tfevents.*")  # of TensorBoard
    for name in ("std", "alignment", "uniformity", "momentum"):
        assert f"collapse/{name}".encode() in events.read_bytes()


def check_monitor(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}
    assert 0 < last["collapse/std"] <= 1.5
    assert last["collapse/uniformity"] <= 0
    assert 0 <= last["collapse/alignment"] <= 4
    assert 0.99 <= last["collapse/momentum"] <= 1
    assert {"loss_12", "loss_13", "total_loss"} <= set(last)


def test_restarting_the_schedule_restarts_the_target(tmp_path: Path) -> None:
    trainer(tmp_path, "SOLVER.TRAIN_ITER", 2).train()
    again = trainer(tmp_path, "SOLVER.RESET_ITER", True, resume=True)
    assert again.model.ema_step == 0


def test_collapse_measures_know_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = nn.functional.normalize(torch.randn(2000, 64, generator=generator), dim=1)
    same = spread[:1].expand(2000, 64)
    assert embedding_spread(spread).item() == pytest.approx(1.0, abs=0.02)
    assert embedding_spread(same).item() == pytest.approx(0.0, abs=1e-5)
    assert uniformity(same[:50]).item() == pytest.approx(0.0, abs=1e-5)
    assert uniformity(spread[:200]).item() == pytest.approx(-4.0, abs=0.3)
    assert alignment(torch.ones(3)).item() == 0.0
    assert alignment(-torch.ones(3)).item() == 4.0
    pairs = [(a - b).square().sum() for i, a in enumerate(spread[:6]) for b in spread[:i]]
    expected = torch.stack(pairs).mul(-2).exp().mean().log()
    torch.testing.assert_close(uniformity(spread[:6]), expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DATASETS.TEST", "('demo_val',)"], "no test set"),
        (["DATALOADER.SAMPLER_TRAIN", "TrainingSampler"], "does not make views"),
        (["SOCO.VIEWS.AWARE_END", "3"], "pyramid has 4"),
        (["SOCO.LEVEL_USE", "both"], "dense or sparse"),
        (["SOCO.POOLER_RESOLUTION", "0"], "SOCO.POOLER_RESOLUTION: regions of 0 x 0"),
        (["SOCO.SCHEDULE.MULTIPLIER", "0.0"], "SOCO.SCHEDULE.MULTIPLIER.*above 0"),
        (["SOCO.SCHEDULE.MULTIPLIER", "-1.0"], "SOCO.SCHEDULE.MULTIPLIER.*above 0"),
        (["TEST.PRECISE_BN.ENABLED", "True"], "PRECISE_BN"),
    ],
    ids=[
        "test-set",
        "loader",
        "levels",
        "level-use",
        "no-region",
        "multiplier-0",
        "multiplier-below",
        "precise-bn",
    ],
)
def test_impossible_configurations_are_refused(words: list[str], message: str) -> None:
    cfg = tiny_config("SoCoFPN", "DATALOADER.SAMPLER_TRAIN", "SoCoViews", *words)
    with pytest.raises(ConfigError, match=message):
        check_soco(cfg, True)


def test_possible_configurations_and_other_models_pass() -> None:
    check_soco(tiny_config("SoCoFPN", "DATALOADER.SAMPLER_TRAIN", "SoCoViews"), True)
    check_soco(tiny_config("GeneralizedRCNN", "DATASETS.TEST", "('demo_val',)"), True)
