"""Weights for mmdetection: the names of specification 5.1, with modules that have those names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from ext_common.errors import WeightsError
from ext_common.modeling.build import build_model
from ext_common.weights_export import write_weights
from ext_common.weights_io import load_tensors
from soco_ext.checkpoint.export_mmdet import for_mmdet, mmdet_name
from tests.soco_ext.test_transfer import golden_json
from tests.soco_ext.tiny_soco import tiny_config
from tools import convert_weights

WIDTH, FEATURES = 8, 16


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.ModuleDict:
    """mmcv's ConvModule: convolution without bias, and its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
    return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(outputs)})


def mmdet_modules() -> nn.Module:
    """What of a Mask R-CNN with R18-FPN in mmdetection is pretrained, under its names."""
    model, roi_head, box_head = nn.Module(), nn.Module(), nn.Module()
    model.backbone = resnet18()
    del model.backbone.fc
    model.neck = nn.Module()
    channels = (64, 128, 256, 512)
    model.neck.lateral_convs = nn.ModuleList(conv_norm(c, WIDTH, 1) for c in channels)
    model.neck.fpn_convs = nn.ModuleList(conv_norm(WIDTH, WIDTH, 3) for _ in channels)
    box_head.shared_convs = nn.ModuleList(conv_norm(WIDTH, WIDTH, 3) for _ in range(4))
    box_head.shared_fcs = nn.ModuleList([nn.Linear(WIDTH * 49, FEATURES)])
    roi_head.bbox_head = box_head
    model.roi_head = roi_head
    return model


def test_weights_load_into_modules_with_mmdetections_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = build_model(tiny_config("SoCoFPN", "SOCO.BASE_WIDTH", 64))
    weights = source.state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "soco.pth")
    words = ["--path", str(tmp_path / "soco.pth"), "--export", "soco-mmdet"]
    assert convert_weights.main([*words, "--output", str(tmp_path / "mmdet.pth")]) == 0
    assert "left out" in capsys.readouterr().out
    content = load_tensors(tmp_path / "mmdet.pth")
    assert content.keys() == {"state_dict", "meta"}
    detector = mmdet_modules()
    detector.load_state_dict(content["state_dict"], strict=True)
    own = detector.state_dict()
    for a, b in (
        ("backbone.layer2.0.downsample.1.running_var", "encoder.layer2.0.downsample.1.running_var"),
        ("neck.fpn_convs.2.bn.bias", "neck.fpn_convs.2.bn.bias"),
        ("roi_head.bbox_head.shared_convs.3.conv.weight", "head.conv4.weight"),
        ("roi_head.bbox_head.shared_fcs.0.weight", "head.fc1.weight"),
    ):
        assert torch.equal(own[a], weights[b]), a
    assert convert_weights.main([*words, "--output", str(tmp_path / "mmdet.pkl")]) == 1
    assert "use .pth" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["FPN", "C4"])
def test_golden_state_dict_has_all_of_mmdetections_names(kind: str) -> None:
    """As many tensors as go to detectron2; the ResNet's are torchvision's."""
    stored = golden_json(f"state_dict_{kind}.json")
    exported = {new for name in stored if (new := mmdet_name(name)) is not None}
    to_detectron2 = golden_json(f"d2_mapping_{kind}.json")
    assert len(exported) == len(to_detectron2)
    assert {name for name in stored if mmdet_name(name) is not None} == set(to_detectron2)
    parts = {name.split(".")[0] for name in exported}
    assert parts == ({"backbone", "neck", "roi_head"} if kind == "FPN" else {"backbone"})


def test_other_weights_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="SoCo"):
        for_mmdet({"backbone.conv1.weight": torch.zeros(1), "neck.a": torch.zeros(1)})
    weights = for_mmdet({"encoder.conv1.weight": Tensor([1.0])})
    with pytest.raises(WeightsError, match="mmdetection does not read it"):
        write_weights(weights, tmp_path / "a.safetensors")
