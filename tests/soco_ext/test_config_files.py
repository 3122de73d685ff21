"""Every file in configs/soco loads, says what its recipe says, and builds its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from ext_common.config import load_config
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from ext_common.solver import effective_batch, scaled_lr
from soco_ext.config_checks import check_soco
from soco_ext.modeling.momentum import momentum_steps

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "soco"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PRETRAINING = [name for name in FILES if name.startswith("SoCo_")]
TRANSFER = [name for name in FILES if not name.startswith(("SoCo_", "Base", "Linear"))]
IMAGENET = 1_281_167


def config(name: str, *words: Any) -> CfgNode:
    register_all()
    return load_config(FOLDER / f"{name}.yaml", list(words))


@pytest.mark.parametrize("name", [n for n in FILES if n != "Base-transfer"])
def test_every_file_builds(name: str) -> None:
    cfg = config(name, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    assert any(p.requires_grad for p in model.parameters())
    assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_files_pass_their_check(name: str) -> None:
    cfg = config(name)
    check_soco(cfg, True)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_SCHEDULER_NAME) == ("LARS", "SoCoCosine")


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("SoCo_FPN_100ep", 100),
        ("SoCo_FPN_400ep", 400),
        ("SoCo_FPN_Star_400ep", 400),
        ("SoCo_C4_100ep", 100),
        ("SoCo_C4_400ep", 400),
        ("SoCo_FPN_100ep_1gpu", 100),
    ],
)
def test_published_schedules(name: str, epochs: int) -> None:
    cfg = config(name)
    assert effective_batch(cfg) == 2048
    assert scaled_lr(cfg) == 8.0
    assert epochs * (IMAGENET // 2048) == cfg.SOLVER.MAX_ITER
    assert cfg.SOLVER.WARMUP_ITERS == 10 * (IMAGENET // 2048)
    assert momentum_steps(IMAGENET, 16, 128, epochs) == cfg.SOCO.MOMENTUM_STEPS
    assert pytest.approx(1e-5) == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize("name", TRANSFER)
def test_transfer_files_keep_what_all_share(name: str) -> None:
    cfg = config(name)
    model = cfg.MODEL
    assert cfg.INPUT.FORMAT == "RGB"
    assert list(model.PIXEL_MEAN) == [123.675, 116.28, 103.53]
    assert list(model.PIXEL_STD) == [58.395, 57.12, 57.375]
    assert (model.RESNETS.STRIDE_IN_1X1, model.BACKBONE.FREEZE_AT) == (False, 0)
    assert model.RESNETS.NORM == "SyncBN"
    assert pytest.approx(2.5e-5) == cfg.SOLVER.WEIGHT_DECAY
    assert cfg.TEST.PRECISE_BN.ENABLED
    assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER
    if model.ROI_HEADS.NAME == "StandardROIHeads":
        head = model.ROI_BOX_HEAD
        assert (head.NUM_CONV, head.NUM_FC, head.NORM) == (4, 1, "SyncBN")
        assert model.FPN.NORM == "SyncBN"
    else:
        assert model.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
