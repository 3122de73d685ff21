"""The commands of docs/regionclip_pretraining.md, as they stand, on tiny data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.proposal_generator import build_proposal_generator

from ext_common.config import load_config
from tests.regionclip_ext.pair_files import picture, write_coco
from tests.regionclip_ext.tiny_detector import DIM, tiny_options, write_offline
from tools import prepare_data, train_net

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "regionclip_pretraining.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^### (.+?)\n\n```\n(.+?)\n```", PAGE, flags=re.MULTILINE | re.DOTALL)
TOOLS: dict[str, Any] = {
    "tools/prepare_data.py": prepare_data.main,
    "tools/train_net.py": train_net.main,
}
SOLVER = f"""SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) DATALOADER.NUM_WORKERS 0
    AUG.TRAIN.IMAGE_SIZE [48] AUG.TRAIN.MAX_SIZE 96 MODEL.CLIP.TEACHER_IMAGE_ENCODER custom
    MODEL.CLIP.TEACHER_CUSTOM_ENCODER.WIDTH 4 MODEL.CLIP.TEACHER_CUSTOM_ENCODER.LAYERS [1,1,1,1]
    MODEL.CLIP.TEACHER_CUSTOM_ENCODER.HEADS 2 MODEL.CLIP.TEACHER_POOLER_RESOLUTION 4
    MODEL.CLIP.TEACHER_CUSTOM_ENCODER.RESOLUTION 64 MODEL.CLIP.PRETRAIN_RPN_REGIONS 8
    MODEL.CLIP.TEACHER_CUSTOM_ENCODER.EMBED_DIM {DIM} SEED 1
    MODEL.CLIP.ALLOW_RANDOM_INIT True"""


def _rpn_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A detector's checkpoint with the names that detectron2 gives."""
    cfg = load_config(write_offline(folder))
    backbone = build_backbone(cfg)
    parts: dict[str, Any] = {
        "backbone": backbone,
        "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
    }
    return {
        f"{prefix}.{name}": value
        for prefix, part in parts.items()
        for name, value in part.state_dict().items()
    }


def _words(command: str, small: list[str]) -> list[str]:
    """The command with sizes of a test behind it, and a text encoder without weights."""
    words = shlex.split(command)[2:]
    if words[0] == "concepts":
        words += ["--frequency", "1"]
    elif words[0] == "concept-features":
        words[words.index("RN50-quickgelu")] = "hash"
        at = words.index("--weights")
        words[at : at + 2] = ["--dim", str(DIM), "--cache", "cache"]
    else:
        if "MODEL.CLIP.ENCODER_WEIGHTS" in words:
            at = words.index("MODEL.CLIP.ENCODER_WEIGHTS")
            del words[at : at + 2]  # a file of OpenAI's size
        words += small
    return words


@pytest.mark.timeout(1200)
def test_recipe_from_captions_to_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    coco = write_coco(tmp_path / "datasets" / "coco", 4)
    coco.rename(coco.with_name("captions_train2017.json"))
    (tmp_path / "datasets/coco/tiny2017").rename(tmp_path / "datasets/coco/train2017")
    (tmp_path / "datasets/custom_images").mkdir()
    (tmp_path / "datasets/custom_images/a.png").write_bytes(picture(0))
    (tmp_path / "models").mkdir()
    torch.save({"model": _rpn_weights(tmp_path)}, "models/rpn_lvis_866.pth")
    assert [name for name, _ in SECTIONS] == [
        "Concepts",
        "Embeddings",
        "Regions",
        "Training",
        "Features",
    ]
    for name, command in SECTIONS:
        small = tiny_options(tmp_path) + (SOLVER.split() if name != "Features" else [])
        # named in the commands: the encoder's weights by the checkpoint, the RPN's by its file
        for key in ("MODEL.WEIGHTS", "MODEL.CLIP.BB_RPN_WEIGHTS"):
            at = small.index(key)
            del small[at : at + 2]
        tool = shlex.split(command)[1]
        assert TOOLS[tool](_words(command, small)) == 0, capsys.readouterr().err
    concepts = Path("datasets/metadata/coco_nouns.txt").read_text().splitlines()
    assert "square,3" in concepts
    assert torch.load("models/coco_nouns_emb.pth", weights_only=True).shape == (
        len(concepts),
        DIM,
    )
    state = torch.load("output/regionclip/pretrain_coco_RN50/model_final.pth", weights_only=True)
    assert any(key.startswith("teacher_backbone.") for key in state["model"])
    features = torch.load("output/features/a.pth", weights_only=True)
    assert set(features) == {"boxes", "feats", "classes", "probs"}
