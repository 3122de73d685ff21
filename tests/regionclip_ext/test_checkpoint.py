"""Weights of OpenAI's, open_clip's, detectron2's and RegionCLIP's files in the two-branch detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultPredictor
from torch import Tensor, nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from ext_common.predictor import Predictor
from regionclip_ext.checkpoint import load_clip_encoders, load_offline_branch
from tests.regionclip_ext.tiny_detector import tiny_config


def _detector(folder: Path, **keys: object) -> nn.Module:
    return build_model(tiny_config(folder, **keys))


def _varied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other values, also in the statistics of batch norms."""
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v for k, v in state.items()}


def _openai_file(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """A CLIP file for a model's encoders, in half precision, with all that OpenAI's has besides."""
    content = {}
    for name, value in _varied(model.state_dict()).items():
        if name.startswith("backbone."):
            content["visual." + name.removeprefix("backbone.")] = value.half()
            if name.endswith("running_var"):
                counter = name.replace("backbone", "visual").replace(
                    "running_var", "num_batches_tracked"
                )
                content[counter] = torch.tensor(7)
        elif name.startswith("lang_encoder."):
            content[name.removeprefix("lang_encoder.")] = value.half()
    content |= {"logit_scale": torch.tensor(4.6), "input_resolution": torch.tensor(64)}
    content |= {"context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}
    torch.save(content, path)
    return content


def test_openais_file_fills_image_and_text_encoder_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    keys = {"MODEL__CLIP__GET_CONCEPT_EMB": True, "MODEL__CLIP__LANG_ENCODER__VOCABULARY": 30}
    content = _openai_file(_detector(tmp_path, **keys), path)
    model = _detector(tmp_path, **keys, MODEL__CLIP__ENCODER_WEIGHTS=str(path))
    state = model.state_dict()
    assert any(name.startswith("lang_encoder.") for name in state)
    for name, value in state.items():
        if name.startswith("backbone."):
            assert torch.equal(value, content["visual." + name[9:]].float())
        elif name.startswith("lang_encoder."):
            assert torch.equal(value, content[name[13:]].float())


def test_openais_file_reaches_an_encoder_below_a_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    content = _openai_file(_detector(tmp_path), path)
    model = _detector(
        tmp_path,
        MODEL__META_ARCHITECTURE="GeneralizedRCNN",
        MODEL__BACKBONE__NAME="build_clip_resnet_fpn_backbone",
        MODEL__RESNETS__OUT_FEATURES="['res2','res3','res4','res5']",
        MODEL__FPN__IN_FEATURES="['res2','res3','res4','res5']",
        MODEL__FPN__OUT_CHANNELS=8,
        MODEL__RPN__IN_FEATURES="['p4']",
        MODEL__ROI_HEADS__IN_FEATURES="['p2']",
        MODEL__ROI_HEADS__NAME="StandardROIHeads",
        MODEL__ROI_BOX_HEAD__NAME="FastRCNNConvFCHead",
        MODEL__ROI_BOX_HEAD__NUM_FC=1,
        MODEL__ROI_BOX_HEAD__FC_DIM=8,
        MODEL__CLIP__USE_TEXT_EMB_CLASSIFIER=False,
    )
    load_clip_encoders(model, path)
    state = model.state_dict()
    bottom_up = [name for name in state if name.startswith("backbone.bottom_up.")]
    assert bottom_up
    for name in bottom_up:
        assert torch.equal(
            state[name], content[name.replace("backbone.bottom_up", "visual")].float()
        )


def test_another_clip_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    other = _detector(tmp_path, MODEL__CLIP__CUSTOM_ENCODER__WIDTH=8)
    _openai_file(other, path)
    model = _detector(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="mis-shaped"):
        load_clip_encoders(model, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _rpn_file(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """A detector's checkpoint whose backbone and RPN fit the offline branch."""
    content = {
        name.removeprefix("offline_"): value
        for name, value in _varied(model.state_dict()).items()
        if name.startswith("offline_")
    }
    content["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(3, 4)
    torch.save({"model": content, "iteration": 3}, path)
    return content


def test_the_second_file_leaves_the_statistics_of_the_clip_branch_alone(tmp_path: Path) -> None:
    """Pitfall 11.1: AP near 0 after the RPN's file was loaded."""
    model = _detector(tmp_path)
    model.load_state_dict(_varied(model.state_dict()))
    before = {n: v.clone() for n, v in model.state_dict().items() if not n.startswith("offline")}
    content = _rpn_file(model, tmp_path / "rpn.pth")
    loaded = load_offline_branch(model, tmp_path / "rpn.pth")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert set(loaded) == {name for name in state if name.startswith("offline_")}
    assert all(torch.equal(state[name], content[name[8:]]) for name in loaded)


def test_a_pretraining_checkpoint_starts_a_detector_with_its_own_rpn(tmp_path: Path) -> None:
    rpn = tmp_path / "rpn.pth"
    content = _rpn_file(_detector(tmp_path), rpn)
    model = _detector(tmp_path, MODEL__CLIP__BB_RPN_WEIGHTS=str(rpn))
    stored = {n: v for n, v in _varied(model.state_dict()).items() if not n.startswith("roi_heads")}
    stored |= {n.replace("backbone.", "teacher_backbone.", 1): v for n, v in stored.items()
               if n.startswith("backbone.")}  # fmt: skip
    stored |= {"lang_encoder.text_projection": torch.ones(3, 4)}
    # a pyramid's RPN instead of the C4 one
    stored["offline_backbone.fpn_lateral2.weight"] = torch.ones(2, 2)
    stored["offline_proposal_generator.rpn_head.conv.weight"] = torch.ones(2, 2, 3, 3)
    path = tmp_path / "pretrained.pth"
    torch.save({"model": stored}, path)
    report = load_model_weights(model, path)
    state = model.state_dict()
    assert report.complete
    for name, value in state.items():
        if name.startswith("backbone."):
            assert torch.equal(value, stored[name])
        elif name.startswith("offline_"):
            assert torch.equal(value, content[name[8:]])


def test_a_checkpoint_must_cover_the_encoder_and_a_branch_without_a_file(tmp_path: Path) -> None:
    model = _detector(tmp_path)
    path = tmp_path / "model.pth"
    for missing in ("backbone.attnpool.q_proj.weight", "offline_backbone.stem.conv1.weight"):
        state = dict(model.state_dict())
        del state[missing]
        torch.save(state, path)
        with pytest.raises(WeightsError, match=missing):
            load_model_weights(model, path)


def test_classes_of_the_configuration_win_over_those_of_the_file(tmp_path: Path) -> None:
    path, embeddings = tmp_path / "model.pth", tmp_path / "emb.pth"
    torch.save(torch.randn(3, 16), embeddings)
    keys = {"MODEL__CLIP__TEXT_EMB_PATH": str(embeddings), "MODEL__ROI_HEADS__NUM_CLASSES": 3}
    model = _detector(tmp_path, **keys)
    own = model.roi_heads.box_predictor.cls_score.weight.clone()
    for classes in (3, 5):
        other = dict(_varied(model.state_dict()))
        other["roi_heads.box_predictor.cls_score.weight"] = torch.randn(classes, 16)
        other["roi_heads.box_predictor.test_cls_score.weight"] = torch.randn(classes, 16)
        torch.save(other, path)
        assert load_model_weights(model, path).complete
        assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, own)


def test_detectron2s_predictor_has_the_weights_of_all_files(tmp_path: Path) -> None:
    """It builds the model and loads MODEL.WEIGHTS, and knows no other keys."""
    model = _detector(tmp_path)
    state = _varied(model.state_dict())
    branch = {n: t for n, t in state.items() if n.startswith("offline_")}
    torch.save({n.removeprefix("offline_"): t for n, t in branch.items()}, tmp_path / "rpn.pth")
    rest = {n: t for n, t in state.items() if n not in branch}
    torch.save({"model": rest}, tmp_path / "clip.pth")
    keys = {"MODEL__CLIP__BB_RPN_WEIGHTS": str(tmp_path / "rpn.pth")}
    keys["MODEL__WEIGHTS"] = str(tmp_path / "clip.pth")
    cfg = tiny_config(tmp_path, "zeroshot_RN50.yaml", MODEL__VOCABULARY="cat, dog", **keys)
    theirs = DefaultPredictor(cfg).model
    ours = Predictor(cfg).model
    found = theirs.state_dict()
    for name, value in branch.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert theirs.offline_fixed
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("stem", ["C4", "FPN"])
def test_ordinary_detectors_start_from_a_pretraining_of_ours(stem: str, tmp_path: Path) -> None:
    source = _detector(tmp_path)
    state = _varied(source.state_dict())
    torch.save({"model": state}, tmp_path / "regionclip.pth")
    keys = {"MODEL__CLIP__ENCODER_WEIGHTS": str(tmp_path / "regionclip.pth")}
    plain = build_model(tiny_config(tmp_path, f"rcnn_coco_RN50_{stem}.yaml", **keys))
    below = "backbone.bottom_up." if stem == "FPN" else "backbone."
    found = {n: t for n, t in plain.state_dict().items() if n.startswith(below)}
    assert any("layer3" in name for name in found)
    for name, value in found.items():
        torch.testing.assert_close(value, state["backbone." + name.removeprefix(below)], msg=name)
