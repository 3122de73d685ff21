"""OpenAI's and open_clip's files as ``MODEL.WEIGHTS`` of the two-branch detector."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ext_common.checkpoint import TranslatesWeights, load_model_weights
from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from tests.ext_common.clip_files import save_like_openai
from tests.regionclip_ext.tiny_detector import tiny_config

TEXT = {"MODEL__CLIP__GET_CONCEPT_EMB": True, "MODEL__CLIP__LANG_ENCODER__VOCABULARY": 30}


def _detector(folder: Path, name: str = "Base_C4.yaml", **keys: object) -> nn.Module:
    return build_model(tiny_config(folder, name, **keys))


def _clip(model: nn.Module) -> dict[str, Tensor]:
    """Random float32 tensors of a CLIP that fits, under CLIP's names; exact in half precision."""
    content = {}
    for name, value in model.state_dict().items():
        stored = name.replace("backbone.", "visual.", 1).removeprefix("lang_encoder.")
        if name.startswith(("backbone.", "lang_encoder.")):
            content[stored] = (torch.rand_like(value) + 0.5).half().float()
    return content | {"logit_scale": torch.tensor(4.5)}


def _rpn(model: nn.Module, path: Path) -> Path:
    """A detector's checkpoint for the offline branch."""
    torch.save({n[8:]: v for n, v in model.state_dict().items() if n.startswith("offline_")}, path)
    return path


def _assert_loaded(model: nn.Module, content: dict[str, Tensor]) -> None:
    state = model.state_dict()
    encoders = [name for name in state if name.startswith(("backbone.", "lang_encoder."))]
    assert any(name.startswith("backbone.attnpool.") for name in encoders)
    for name in encoders:
        stored = name.replace("backbone.", "visual.", 1).removeprefix("lang_encoder.")
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], content[stored]), name


@pytest.mark.parametrize("form", ["archive", "open_clip", "wrapped"])
@pytest.mark.parametrize("text", [False, True], ids=["image", "image-and-text"])
def test_clips_own_file_starts_a_detector(form: str, text: bool, tmp_path: Path) -> None:
    content = _clip(_detector(tmp_path, **TEXT))
    path = tmp_path / "clip.pt"
    if form == "archive":
        save_like_openai(content, path)
    else:
        state = {n if "visual" in n else f"text.{n}": v for n, v in content.items()}
        torch.save(content if form == "open_clip" else {"epoch": 3, "state_dict": state}, path)
    rpn = _rpn(_detector(tmp_path), tmp_path / "rpn.pth")
    keys = {**(TEXT if text else {}), "MODEL__CLIP__BB_RPN_WEIGHTS": str(rpn)}
    model = _detector(tmp_path, **keys)
    assert isinstance(model, TranslatesWeights)
    before = {n: v.clone() for n, v in model.state_dict().items() if n.startswith("offline_")}
    assert load_model_weights(model, path).complete
    _assert_loaded(model, content)
    assert any(name.startswith("lang_encoder.") for name in model.state_dict()) == text
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_what_clip_cannot_have_is_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"DATASETS__TRAIN": (), "DATASETS__TEST": (), "MODEL__VOCABULARY": "disc, square"}
    keys["MODEL__CLIP__BB_RPN_WEIGHTS"] = str(_rpn(_detector(tmp_path), tmp_path / "rpn.pth"))
    model = _detector(tmp_path, "ovd_lvis_RN50.yaml", **keys)
    torch.save(_clip(model), tmp_path / "clip.pt")
    with caplog.at_level(logging.INFO):
        load_model_weights(model, tmp_path / "clip.pt")
    (line,) = (r.message for r in caplog.records if r.message.startswith("not taken from"))
    for part in ("box_predictor.bbox_pred", "mask_head", "offline_proposal_generator"):
        assert part in line
    assert "backbone.*" not in line.replace("offline_backbone.*", "")


@pytest.mark.parametrize("fault", ["no RPN", "incomplete", "other names", "other width", "ViT"])
def test_coverage_stays_strict(fault: str, tmp_path: Path) -> None:
    rpn = None if fault == "no RPN" else str(_rpn(_detector(tmp_path), tmp_path / "rpn.pth"))
    model = _detector(tmp_path, MODEL__CLIP__BB_RPN_WEIGHTS=rpn)
    source = model
    if fault == "other width":
        source = _detector(tmp_path, MODEL__CLIP__CUSTOM_ENCODER__WIDTH=8)
    content = _clip(source)
    if fault == "incomplete":
        del content["visual.attnpool.q_proj.weight"]
    elif fault == "other names":
        content["adapter.weight"] = torch.ones(2)
    elif fault == "ViT":
        content["visual.transformer.resblocks.0.ln_1.weight"] = torch.ones(2)
    torch.save(content, tmp_path / "clip.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    message = {
        "no RPN": r"missing: offline_backbone\.",
        "incomplete": r"1 missing: backbone\.attnpool\.q_proj\.weight",
        "other names": r"1 unexpected: adapter\.weight",
        "other width": "mis-shaped",
        "ViT": "vision transformer, which is not supported",
    }[fault]
    with pytest.raises(WeightsError, match=message):
        load_model_weights(model, tmp_path / "clip.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
