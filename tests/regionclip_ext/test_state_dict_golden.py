"""Names and shapes of the published models, without their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ext_common.config import load_config
from regionclip_ext.checkpoint_names import clip_key_map, offline_name
from regionclip_ext.modeling.meta_arch import CLIPFastRCNN
from regionclip_ext.modeling.pretrain.meta_arch import PretrainFastRCNN
from tests.golden_cases import golden_root
from tests.regionclip_ext.golden_models import CONFIGS

FOLDER = golden_root() / "regionclip"
OVD = sorted(FOLDER.glob("state_dict_ovd_*.json"))
PRETRAINING = sorted(FOLDER.glob("state_dict_pretrain_*.json"))
_TRAINED = "roi_heads.box_predictor.cls_score.weight"
_TESTED = "roi_heads.box_predictor.test_cls_score.weight"


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _config_name(golden: dict[str, Any]) -> str:
    """The published recipe that a list of names belongs to."""
    data = "lvis" if any("mask_head" in name for name in golden) else "coco"
    wide = golden["backbone.attnpool.c_proj.weight"][1] > 2048
    return f"ovd_{data}_RN50{'x4' if wide else ''}.yaml"


@pytest.mark.golden
@pytest.mark.parametrize("path", OVD, ids=lambda path: path.stem)
def test_golden_names_of_the_detectors(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])  # the offline branch's file is named from there
    golden = json.loads(path.read_text())
    train, test = tmp_path / "train.pth", tmp_path / "test.pth"
    torch.save(torch.ones(golden[_TRAINED]), train)
    torch.save(torch.ones(golden[_TESTED]), test)
    clip = "MODEL.CLIP"
    cfg = load_config(CONFIGS / _config_name(golden), [
        f"{clip}.TEXT_EMB_PATH", str(train), f"{clip}.OPENSET_TEST_TEXT_EMB_PATH", str(test),
        "DATASETS.TRAIN", "()", "DATASETS.TEST", "()", f"{clip}.BB_RPN_WEIGHTS", "None",
        "MODEL.ROI_HEADS.NUM_CLASSES", str(golden[_TRAINED][0]),
    ])  # fmt: skip
    with torch.device("meta"):
        model = CLIPFastRCNN(cfg)
    assert _shapes(model) == golden


@pytest.mark.golden
@pytest.mark.parametrize("path", PRETRAINING, ids=lambda path: path.stem)
def test_golden_names_of_pretraining(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    golden = json.loads(path.read_text())
    pools = {}
    for key, encoder in (("", "backbone."), ("TEACHER_", "teacher_backbone.")):
        pool = tmp_path / f"{key}pool.pth"
        torch.save(torch.ones(5, golden[f"{encoder}attnpool.c_proj.weight"][0]), pool)
        pools[f"MODEL.CLIP.{key}CONCEPT_POOL_EMB"] = str(pool)
    wide = golden["backbone.attnpool.c_proj.weight"][1] > 2048
    cfg = load_config(
        CONFIGS / f"pretrain_cc3m_RN50{'x4' if wide else ''}.yaml",
        [word for pair in pools.items() for word in pair],
    )
    with torch.device("meta"):
        model = PretrainFastRCNN(cfg)
    assert _shapes(model) == golden


@pytest.mark.golden
def test_golden_key_map_of_openais_file() -> None:
    golden = json.loads((FOLDER / "openai_clip_key_map_RN50.json").read_text())
    prefixes = sorted({t.split(".")[0] + "." for names in golden.values() for t in names})
    encoders = [prefix for prefix in prefixes if "backbone" in prefix]
    ours = clip_key_map(golden, encoders=encoders)
    assert {k: sorted(v) for k, v in ours.items()} == {k: sorted(v) for k, v in golden.items()}


def test_names_of_a_detectors_file_in_the_offline_branch() -> None:
    assert offline_name("backbone.stem.conv1.weight") == "offline_backbone.stem.conv1.weight"
    assert offline_name("offline_backbone.res2.0.conv1.weight") is not None
    assert offline_name("roi_heads.box_predictor.cls_score.weight") is None
    assert offline_name("proposal_generator.rpn_head.conv.weight") == (
        "offline_proposal_generator.rpn_head.conv.weight"
    )
