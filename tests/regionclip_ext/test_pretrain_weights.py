"""``MODEL.WEIGHTS`` of a pretraining model: CLIP's own files, and parts with files of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ext_common.checkpoint import load_model_weights
from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from tests.regionclip_ext.pretrain_cases import LANG, offline_yaml, random_config
from tests.regionclip_ext.test_shared_stages import SAME


def _build(folder: Path, *options: tuple[str, Any], same: bool = True) -> Any:
    torch.manual_seed(1)
    chosen = [*(SAME if same else [("CLIP.CROP_REGION_TYPE", "FILE")]), *options]
    return build_model(random_config(folder, chosen))


def _varied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in state.items()}


def _clip_file(model: Any, path: Path, *, prefix: str = "backbone.", text: str = "") -> Any:
    """A CLIP file: OpenAI's in half precision, or (``text.``) one of open_clip in float32."""
    content: dict[str, Tensor] = {}
    for name, value in _varied(model.state_dict()).items():
        stored = value if text else value.half()
        if name.startswith(prefix):
            content["visual." + name.removeprefix(prefix)] = stored
        elif name.startswith("lang_encoder."):
            content[text + name.removeprefix("lang_encoder.")] = stored
    content["logit_scale"] = torch.tensor(4.6)
    if not text:
        content |= {"input_resolution": torch.tensor(64), "vocab_size": torch.tensor(49408)}
    torch.save(content, path)
    return content


@pytest.mark.parametrize("text", ["", "text."], ids=["openai", "open_clip"])
def test_a_clip_file_fills_student_teacher_and_text_encoder(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = _build(tmp_path)
    content = _clip_file(model, tmp_path / "clip.pt", text=text)
    with caplog.at_level(logging.INFO):
        report = load_model_weights(model, tmp_path / "clip.pt")
    assert report.complete
    assert set(report.loaded) == set(model.state_dict())
    assert f"{len(report.loaded)} tensors" in caplog.text
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        source = text + rest if part == "lang_encoder" else f"visual.{rest}"
        assert value.dtype == torch.float32
        assert torch.equal(value, content[source].float()), name


def test_a_clip_file_with_strange_or_missing_tensors_is_refused(tmp_path: Path) -> None:
    model = _build(tmp_path)
    path = tmp_path / "clip.pt"
    content = _clip_file(model, path)
    torch.save({**content, "adapter.weight": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="1 unexpected: adapter.weight"):
        load_model_weights(model, path)
    del content["visual.layer2.0.conv1.weight"]
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"2 missing: backbone\.layer2.*teacher_backbone\.la"):
        load_model_weights(model, path)


def test_a_clip_file_has_no_regions(tmp_path: Path) -> None:
    (tmp_path / "offline.yaml").write_text(offline_yaml())
    rpn = [
        ("CLIP.CROP_REGION_TYPE", "RPN"),
        ("CLIP.OFFLINE_RPN_CONFIG", str(tmp_path / "offline.yaml")),
    ]
    model = _build(tmp_path, *rpn)
    _clip_file(model, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match="missing: offline_backbone"):
        load_model_weights(model, tmp_path / "clip.pt")
    branch = {
        name.removeprefix("offline_"): value
        for name, value in _varied(model.state_dict()).items()
        if name.startswith("offline_")
    }
    torch.save(branch, tmp_path / "rpn.pth")
    model = _build(tmp_path, *rpn, ("CLIP.BB_RPN_WEIGHTS", str(tmp_path / "rpn.pth")))
    assert load_model_weights(model, tmp_path / "clip.pt").complete
    # nor does another checkpoint replace what the branch's own file says
    torch.save({"model": _varied(model.state_dict())}, tmp_path / "other.pth")
    assert load_model_weights(model, tmp_path / "other.pth").complete
    state = model.state_dict()
    assert all(torch.equal(state[f"offline_{name}"], value) for name, value in branch.items())


def test_a_wider_teacher_needs_a_file_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    model = _build(tmp_path, same=False)
    _clip_file(model, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match="mis-shaped: teacher_backbone"):
        load_model_weights(model, tmp_path / "clip.pt")
    wide = _clip_file(model, tmp_path / "wide.pt", prefix="teacher_backbone.")
    options = ("CLIP.TEACHER_ENCODER_WEIGHTS", str(tmp_path / "wide.pt"))
    model = _build(tmp_path, options, same=False)
    assert load_model_weights(model, tmp_path / "clip.pt").complete
    for name, value in model.teacher_backbone.state_dict().items():
        assert torch.equal(value, wide[f"visual.{name}"].float()), name
    assert LANG["width"] == model.lang_encoder.text_projection.shape[0]
