"""The text encoder inside a RegionCLIP checkpoint names the classes: no further file."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from ext_common.config import load_config
from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from ext_common.predictor import Predictor
from ext_common.text_encoder import ClipTextEncoder, load_vocabulary, text_encoder_from_config
from ext_common.vocabulary import Vocabulary
from tests.dist.tiny_training import write_dataset
from tests.ext_common.clip_files import (
    TINY,
    expected_features,
    model_folder,
    save_weights,
    tiny_clip,
)
from tests.golden_cases import golden_arrays
from tests.regionclip_ext.golden_models import CONFIGS, stored_weights
from tests.regionclip_ext.tiny_detector import tiny_config, tiny_options
from tools import demo

DIM = TINY["embed_dim"]
NAMES = ("cat", "remote control")


@pytest.fixture(autouse=True)
def _no_other_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a download nor a user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delattr(open_clip, "download_pretrained")


def _lang_encoder(prefix: str = "") -> dict[str, Tensor]:
    state = tiny_clip().state_dict()
    text = {n: v for n, v in state.items() if not n.startswith(("visual.", "logit"))}
    return {f"{prefix}lang_encoder.{name}": value for name, value in text.items()}


def _options(folder: Path, checkpoint: Path | str, **keys: object) -> list[str]:
    return tiny_options(
        folder, MODEL__WEIGHTS=str(checkpoint), MODEL__TEXT_ENCODER__NAME=model_folder(folder / "m"),
        MODEL__TEXT_ENCODER__CACHE_DIR=str(folder / "cache"), MODEL__CLIP__TEXT_EMB_DIM=DIM,
        MODEL__CLIP__CUSTOM_ENCODER__EMBED_DIM=DIM, **keys,
    )  # fmt: skip


def _checkpoint(folder: Path) -> Path:
    """A pretraining checkpoint: detector without classes, and its text encoder."""
    torch.manual_seed(0)
    cfg = load_config(CONFIGS / "Base_C4.yaml", _options(folder, ""))
    model = build_model(cfg)
    with torch.no_grad():  # logits above 0: raw fusion drops the others
        model.offline_proposal_generator.rpn_head.objectness_logits.bias.fill_(5.0)
    path = folder / "regionclip.pth"
    torch.save({"model": model.state_dict() | _lang_encoder(), "iteration": 5}, path)
    return path


@pytest.mark.golden
def test_golden_text_encoder_in_a_checkpoint(tmp_path: Path) -> None:
    arrays = golden_arrays("regionclip", "lang_encoder.npz")
    weights = stored_weights(arrays)
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")}
    context, width = weights["positional_embedding"].shape
    text = {"context_length": context, "vocab_size": len(weights["token_embedding.weight"]),
            "width": width, "heads": int(arrays["heads"]), "layers": len(blocks)}  # fmt: skip
    dim = weights["text_projection"].shape[1]
    config = TINY | {"embed_dim": dim, "text_cfg": text, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    stored = {f"lang_encoder.{name}": tensor for name, tensor in weights.items()}
    stored |= {"backbone.conv1.weight": torch.ones(2), "teacher_backbone.x": torch.ones(2)}
    torch.save({"model": stored, "iteration": 5}, tmp_path / "regionclip.pth")
    encoder = ClipTextEncoder(f"local-dir:{tmp_path}", str(tmp_path / "regionclip.pth"))
    assert encoder.dim == dim
    ours = encoder.encode_tokens(torch.from_numpy(arrays["tokens"]).long())
    golden = torch.from_numpy(arrays["eot_embedding"])
    torch.testing.assert_close(ours, golden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "parallel"])
def test_it_is_the_encoder_of_openais_file(prefix: str, tmp_path: Path) -> None:
    name = model_folder(tmp_path / "m")
    path = tmp_path / "regionclip.pth"
    torch.save({"model": _lang_encoder(prefix) | {f"{prefix}backbone.x": torch.ones(1)}}, path)
    encoder = ClipTextEncoder(name, str(path))
    archive = save_weights("torchscript", tiny_clip(), tmp_path / "openai")
    assert encoder.encoder_id == ClipTextEncoder(name, str(archive)).encoder_id
    expected = expected_features(tiny_clip(), list(NAMES))
    torch.testing.assert_close(encoder.encode(NAMES), expected, atol=1e-5, rtol=0)
    other = ClipTextEncoder(model_folder(tmp_path / "plain", quick_gelu=False), str(path))
    with pytest.raises(WeightsError, match=r"regionclip\.pth.*QuickGELU"):
        other.encode(NAMES)


def test_the_checkpoints_encoder_is_used_unless_another_is_named(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    words = ", ".join(NAMES)
    cfg = load_config(
        CONFIGS / "zeroshot_RN50.yaml", _options(tmp_path, checkpoint, MODEL__VOCABULARY=words)
    )
    vocabulary = load_vocabulary(cfg)
    assert vocabulary is not None
    prompts = [[t.replace("{}", n) for n in NAMES] for t in cfg.MODEL.TEXT_ENCODER.TEMPLATES]
    model = tiny_clip()
    expected_CD = torch.stack([expected_features(model, group) for group in prompts]).mean(dim=0)
    torch.testing.assert_close(vocabulary.embeddings_CD, expected_CD, atol=1e-5, rtol=0)
    assert Predictor(cfg, vocabulary=Vocabulary.parse(words)).class_names == NAMES
    other = save_weights("text only", tiny_clip(seed=1), tmp_path / "other")
    cfg.MODEL.TEXT_ENCODER.WEIGHTS = str(other)
    assert text_encoder_from_config(cfg).encoder_id != vocabulary.encoder_id
    cfg.MODEL.TEXT_ENCODER.WEIGHTS = ""
    cfg.MODEL.TEXT_ENCODER.NAME = "hash"
    assert text_encoder_from_config(cfg).encoder_id.startswith("hash")


@pytest.mark.parametrize("content", ["none", "damaged", "missing"])
def test_a_checkpoint_without_one_leads_to_the_usual_message(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    if content == "none":
        torch.save({"model": {"backbone.conv1.weight": torch.ones(2)}}, path)
    elif content == "damaged":
        path.write_bytes(b"PK\x03\x04 and so on")
    cfg = tiny_config(
        tmp_path, MODEL__WEIGHTS=str(path), MODEL__TEXT_ENCODER__NAME="RN50-quickgelu"
    )
    with pytest.raises(WeightsError, match=r"RN50\.pt.*MODEL\.TEXT_ENCODER\.WEIGHTS"):
        text_encoder_from_config(cfg)


def test_own_classes_with_one_command_and_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = _checkpoint(tmp_path)
    write_dataset(tmp_path / "data")
    picture = min((tmp_path / "data" / "images").iterdir())
    code = demo.main([
        "--config-file", str(CONFIGS / "zeroshot_RN50.yaml"), "--input", str(picture),
        "--output", str(tmp_path / "found"), "--vocabulary", ", ".join(NAMES),
        "--confidence-threshold", "0.01", "--format", "coco",
        "--opts", *_options(tmp_path, checkpoint),
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    (written,) = (tmp_path / "found").glob("*.json")
    assert all(name in written.read_text() for name in NAMES)
