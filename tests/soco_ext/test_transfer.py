"""From a pretraining to detectron2's detectors, and the released checkpoints back in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from ext_common.weights_export import write_weights
from ext_common.weights_match import match_weights
from soco_ext.checkpoint.export import for_detectron2, name_mapping
from tests.golden_cases import golden_root

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "soco"
QUEUE = {"module.queue", "module.queue_ptr"}  # of another method: our C4 model does not keep it
MODELS = {"FPN": "SoCo_FPN_100ep", "C4": "SoCo_C4_100ep"}
DETECTORS = {"FPN": ("Mask_R50_FPN_1x", "detector"), "C4": ("Mask_R50_C4_1x", "backbone")}


def golden_json(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((golden_root() / "soco" / name).read_text())
    return content


def meta_model(name: str) -> nn.Module:
    """A model of the published size, without memory."""
    register_all()
    with torch.device("meta"):
        return build_model(load_config(CONFIGS / f"{name}.yaml", ["MODEL.DEVICE", "meta"]))


@pytest.mark.golden
@pytest.mark.parametrize("kind", MODELS)
def test_golden_state_dict_names_and_shapes(kind: str) -> None:
    published = golden_json(f"state_dict_{kind}.json")
    own = {f"module.{k}": list(v.shape) for k, v in meta_model(MODELS[kind]).state_dict().items()}
    assert own == {name: shape for name, shape in published.items() if name not in QUEUE}


@pytest.mark.golden
def test_golden_state_dict_of_star_is_the_same() -> None:
    star, plain = meta_model("SoCo_FPN_Star_400ep"), meta_model("SoCo_FPN_100ep")
    assert {k: v.shape for k, v in star.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }


@pytest.mark.golden
@pytest.mark.parametrize(("kind", "part"), [("FPN", "detector"), ("C4", "backbone")])
def test_golden_names_in_detectron2(kind: str, part: str) -> None:
    names = golden_json(f"state_dict_{kind}.json")
    assert name_mapping(names, part) == golden_json(f"d2_mapping_{kind}.json")
    plain = [name.removeprefix("module.") for name in names]
    assert set(name_mapping(plain, part).values()) == set(name_mapping(names, part).values())


@pytest.mark.golden
@pytest.mark.parametrize("kind", DETECTORS)
def test_golden_export_covers_detectron2_detectors(kind: str) -> None:
    config, part = DETECTORS[kind]
    shapes = golden_json(f"state_dict_{kind}.json")
    stored = {name: torch.zeros(shape, device="meta") for name, shape in shapes.items()}
    exported = for_detectron2(stored, part).tensors
    detector = meta_model(config).state_dict()
    finite = {name: torch.empty(value.shape) for name, value in exported.items() if value.ndim == 0}
    report, pairs = match_weights({**_without_memory(exported), **finite}, detector, by_suffix=True)
    assert not report.unexpected
    assert not report.mis_shaped
    assert not report.missing
    left = {
        name
        for name in set(detector) - set(pairs)
        if not name.endswith(("num_batches_tracked", "pixel_mean", "pixel_std"))
        and "cell_anchors" not in name
    }
    new_parts = ("proposal_generator.rpn_head", "roi_heads.box_predictor", "roi_heads.mask_head")
    extra = {name for name in left if name.startswith("roi_heads.res5.norm.")}
    assert all(name.startswith(new_parts) for name in left - extra)
    # specification 5.1: 34 (pyramid) and 14 (C4, without the extra norm)
    assert len(left - extra) == {"FPN": 34, "C4": 14}[kind]


def _without_memory(tensors: dict[str, Tensor] | object) -> dict[str, Tensor]:
    """Zeros that take one number of memory, in the right shape."""
    assert isinstance(tensors, dict)
    return {name: torch.zeros(()).expand(value.shape) for name, value in tensors.items()}


def tiny_words() -> list[str]:
    return ["SOCO.BASE_WIDTH", "8", "MODEL.RESNETS.DEPTH", "18", "SOCO.HIDDEN_DIM", "16"]


def test_exported_weights_reach_the_detector(tmp_path: Path) -> None:
    register_all()
    source = build_model(load_config(CONFIGS / "SoCo_tiny.yaml", ["SOCO.BASE_WIDTH", "64"]))
    with torch.no_grad():
        for value in source.state_dict().values():
            value.add_(1 if value.dtype == torch.int64 else torch.randn(value.shape))
    path = tmp_path / "soco.pkl"
    write_weights(for_detectron2(source.state_dict()), path)
    words = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    words += ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", "32"]
    words += ["MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32"]
    words += ["MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.NORM", "BN"]
    cfg = load_config(CONFIGS / "Mask_R50_FPN_1x.yaml", [*words, "MODEL.DEVICE", "cpu"])
    detector = build_model(cfg)
    report = load_model_weights(detector, path)
    assert report.complete
    own, theirs = detector.state_dict(), source.state_dict()
    for a, b in (
        ("backbone.bottom_up.stem.conv1.weight", "encoder.conv1.weight"),
        (
            "backbone.bottom_up.res3.0.shortcut.norm.running_var",
            "encoder.layer2.0.downsample.1.running_var",
        ),
        ("backbone.fpn_output4.norm.bias", "neck.fpn_convs.2.bn.bias"),
        ("roi_heads.box_head.conv2.norm.weight", "head.bn2.weight"),
        ("roi_heads.box_head.fc1.weight", "head.fc1.weight"),
    ):
        assert torch.equal(own[a], theirs[b]), a


def test_a_released_checkpoint_is_taken_back_in(tmp_path: Path) -> None:
    register_all()
    cfg = load_config(
        CONFIGS / "SoCo_tiny.yaml", ["MODEL.META_ARCHITECTURE", "SoCoC4", *tiny_words()]
    )
    model, again = build_model(cfg), build_model(cfg)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.queue"], state["module.queue_ptr"] = torch.zeros(4, 8), torch.zeros(1).long()
    path = tmp_path / "ckpt_epoch_100.pth"
    torch.save({"model": state, "epoch": 100}, path)
    report = load_model_weights(again, path)
    assert set(report.permitted) == {"queue", "queue_ptr"}
    assert len(report.loaded) == len(model.state_dict())
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_other_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="SoCo"):
        for_detectron2({"backbone.conv1.weight": torch.zeros(1)})
