"""timm models as detectron2 backbones: golden outputs, published key names, any family, errors."""

from __future__ import annotations

import ast
import json
import re
import socket
from pathlib import Path

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from timm.layers import BatchNormAct2d, DropPath
from timm.models import resnet as timm_resnet
from torch import nn

from ext_common.config import get_config
from ext_common.errors import ConfigError, WeightsError
from ext_common.modeling.p6p7 import LastLevelP6P7_P5
from ext_common.modeling.timm_backbone import TimmBackbone
from ext_common.modeling.timm_models import create_timm_model, find_pretrained_file
from tests.golden_cases import golden_arrays

FAMILIES = {
    "resnet18": (3, 4, 5),
    "resnet26d": (3, 4, 5),
    "resnetrs50": (3, 4, 5),
    "regnety_002": (3, 4, 5),
    "efficientnet_b0": (3, 4, 5),
    "mobilenetv3_small_050": (3, 4, 5),
    "convnext_atto": (2, 3, 4),
    "swin_tiny_patch4_window7_224": (2, 3, 4),
    "mambaout_femto": (2, 3, 4),
}


def config(name: str, backbone: str = "build_timm_backbone", **options):
    cfg = get_config()
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.TIMM.BASE_NAME = name
    cfg.MODEL.TIMM.OUT_LEVELS = FAMILIES.get(name, (3, 4, 5))
    for key, value in options.items():
        setattr(cfg.MODEL.TIMM, key, value)
    return cfg


def shake_norms(module: nn.Module) -> None:
    """Statistics and affine parts that are not the identity, so that a lost one shows."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)


# --- golden -----------------------------------------------------------------------------------


def golden_state(arrays: dict) -> dict[str, torch.Tensor]:
    return {k[3:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("sd/")}


def golden_resnet(cfg: str) -> tuple[nn.Module, list[int]]:
    """The timm ResNet that a line like ``block=Bottleneck, layers=[1,1,1,1], ...`` describes."""
    fields = dict(re.findall(r"(\w+)=(\([^)]*\)|\[[^\]]*\]|[\w.]+)", cfg))
    block = getattr(timm_resnet, fields.pop("block"))
    out_indices = ast.literal_eval(fields.pop("out_indices"))
    options = {key: ast.literal_eval(value) for key, value in fields.items()}
    return timm_resnet.ResNet(block, **options), [index + 1 for index in out_indices]


@pytest.mark.golden
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_golden_timm_resnet(norm) -> None:
    arrays = golden_arrays("detic", "timm_resnet_tiny.npz")
    resnet, levels = golden_resnet(str(arrays["cfg"]))
    resnet.load_state_dict(golden_state(arrays))
    backbone = TimmBackbone(base=resnet, out_levels=levels, norm=norm).eval()
    outputs = backbone(torch.from_numpy(arrays["x"]))
    assert list(outputs) == [f"layer{level}" for level in levels]
    for i, (name, features) in enumerate(outputs.items()):
        expected = torch.from_numpy(arrays[f"out/{i}"])
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert backbone.output_shape()[name].channels == expected.shape[1]


@pytest.mark.golden
def test_golden_p6p7() -> None:
    arrays = golden_arrays("detic", "p6p7.npz")
    state = golden_state(arrays)
    out_channels, in_channels = state["p6.weight"].shape[:2]
    block = LastLevelP6P7_P5(in_channels, out_channels)
    block.load_state_dict(state)
    p6, p7 = block(torch.from_numpy(arrays["p5"]))
    torch.testing.assert_close(p6, torch.from_numpy(arrays["p6"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p7, torch.from_numpy(arrays["p7"]), rtol=1e-4, atol=1e-5)


# --- published checkpoints --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "listing", "levels"),
    [
        ("resnet50_in21k", "state_dict_R50.json", (3, 4, 5)),
        ("resnet18", "state_dict_extra_R18_LCOCOI21k.json", (3, 4, 5)),
        ("convnext_tiny_21k", "state_dict_extra_CXT_LCOCOI21k.json", (2, 3, 4)),
    ],
)
def test_keys_are_those_of_published_checkpoints(name, listing, levels) -> None:
    # not through GOLDEN_ROOT: the published names do not vary
    path = Path(__file__).parents[1] / "golden" / "detic" / listing
    prefix = "backbone."
    published = {
        key[len(prefix) :]: tuple(shape)
        for key, shape in json.loads(path.read_text()).items()
        if key.startswith(prefix) and not key.endswith("num_batches_tracked")
    }
    cfg = config(name, "build_p67_timm_fpn_backbone", OUT_LEVELS=levels)
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    cfg.MODEL.FPN.IN_FEATURES = [f"layer{level}" for level in levels]
    backbone = build_backbone(cfg)
    ours = {
        key: tuple(value.shape)
        for key, value in backbone.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert ours == published
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]


# --- any family -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_any_timm_model_is_a_backbone(name) -> None:
    backbone = build_backbone(config(name)).train()
    shapes = backbone.output_shape()
    assert [shape.stride for shape in shapes.values()] == [8, 16, 32]
    assert backbone.size_divisibility == 32
    for height, width in ((64, 96), (128, 64)):
        outputs = backbone(torch.randn(2, 3, height, width))
        assert list(outputs) == list(shapes)
        for key, features in outputs.items():
            stride = shapes[key].stride
            assert features.shape == (2, shapes[key].channels, height // stride, width // stride)
    sum(features.square().mean() for features in outputs.values()).backward()
    first = next(backbone.parameters())
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet26d", "regnety_002", "mobilenetv3_small_050"])
def test_frozen_norms_compute_what_timm_computes(name) -> None:
    levels = FAMILIES[name]
    base = create_timm_model(name, out_levels=levels)
    shake_norms(base)
    base.eval()
    images = torch.randn(1, 3, 64, 64)
    expected = base(images)
    backbone = TimmBackbone(base=base, out_levels=levels).train()
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    outputs = backbone(images)
    for features, reference in zip(outputs.values(), expected, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(features, reference, rtol=1e-4, atol=1e-5 * scale)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    for key, value in backbone.named_buffers():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_other_norms_learn() -> None:
    backbone = build_backbone(config("regnety_002", NORM="BN")).train()
    norm = next(m for m in backbone.modules() if isinstance(m, BatchNormAct2d))
    before = norm.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert not torch.equal(norm.running_mean, before)
    synced = build_backbone(config("resnet18", NORM="SyncBN"))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synced.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synced.modules())
    with pytest.raises(ConfigError, match="NORM.*'GN'.*FrozenBN, BN, SyncBN"):
        build_backbone(config("resnet18", NORM="GN"))


def test_a_norm_that_cannot_be_frozen_is_named() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 1))
    base.add_module("odd", nn.BatchNorm1d(4))
    base.feature_info = [{"num_chs": 4, "reduction": 1, "module": "0"}]
    with pytest.raises(ConfigError, match="odd is a BatchNorm1d"):
        TimmBackbone(base=base, out_levels=(1,))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize(("freeze_at", "frozen"), [(1, ("conv1",)), (2, ("conv1", "layer1"))])
def test_freeze_at_stops_learning_of_the_first_stages(norm, freeze_at, frozen) -> None:
    backbone = build_backbone(config("resnet18", FREEZE_AT=freeze_at, NORM=norm)).train()
    fixed = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert fixed == {n for n, _ in backbone.named_parameters() if n.split(".")[1] in frozen}
    assert isinstance(backbone.base.bn1, FrozenBatchNorm2d)
    backbone(torch.randn(2, 3, 64, 64))["layer5"].sum().backward()
    assert backbone.base.conv1.weight.grad is None
    assert backbone.base.layer2[0].conv1.weight.grad is not None


def test_freeze_at_is_for_resnets() -> None:
    with pytest.raises(ConfigError, match="FREEZE_AT: 1 with a model that is no ResNet"):
        build_backbone(config("regnety_002", FREEZE_AT=1))


@pytest.mark.parametrize(
    ("name", "option", "rate"),
    [
        ("convnext_tiny_21k", None, 0.2),
        ("convnext_atto", None, 0.3),
        ("convnext_atto", 0.1, 0.1),
        ("resnet18", None, 0.0),
        ("resnet18", 0.15, 0.15),
    ],
)
def test_drop_path(name, option, rate) -> None:
    def rates(model: nn.Module) -> list[float]:
        return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]

    base = create_timm_model(name, out_levels=(2, 3, 4), drop_path_rate=option)
    plain = name.removesuffix("_21k")
    own = timm.create_model(plain, features_only=True, out_indices=(1, 2, 3), drop_path_rate=rate)
    assert rates(base) == rates(own)
    assert bool(rates(base)) == (rate > 0)


def test_channels_last_stays_channels_last() -> None:
    backbone = build_backbone(config("resnet18")).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = backbone(images)
    backbone = backbone.to(memory_format=torch.channels_last)
    outputs = backbone(images.to(memory_format=torch.channels_last))
    for key, features in outputs.items():
        assert features.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(features, expected[key], rtol=1e-4, atol=1e-4)


# --- FPN --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["timm", "resnet"])
@pytest.mark.parametrize(("neck", "levels"), [("p35", 3), ("p67", 5)])
def test_fpn_over_a_padded_batch(body, neck, levels) -> None:
    cfg = config("resnet18", f"build_{neck}_{body}_fpn_backbone")
    if body == "resnet":
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    backbone = build_backbone(cfg)
    pictures = [torch.randn(3, 50, 90), torch.randn(3, 61, 33)]
    batch = ImageList.from_tensors(pictures, backbone.size_divisibility)
    outputs = backbone(batch.tensor)
    assert list(outputs) == [f"p{level}" for level in range(3, 3 + levels)]
    for level, features in zip(range(3, 3 + levels), outputs.values(), strict=True):
        expected = [-(-side // 2**level) for side in batch.tensor.shape[-2:]]
        assert features.shape == (2, 16, *expected)
        assert backbone.output_shape()[f"p{level}"] == ShapeSpec(channels=16, stride=2**level)
    sum(features.sum() for features in outputs.values()).backward()
    learning = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learning.values())


@pytest.mark.parametrize(
    ("levels", "features", "message"),
    [
        ((3, 4, 5), ["layer3", "res4"], "res4 is not among the backbone's outputs layer3, layer4"),
        ((3, 5), [], r"strides \[8, 32\] of layer3, layer5 do not double"),
        ((2, 3, 4), [], "this FPN ends with P4"),
    ],
)
def test_an_fpn_that_cannot_be_says_why(levels, features, message) -> None:
    cfg = config("resnet18", "build_p67_timm_fpn_backbone", OUT_LEVELS=levels)
    cfg.MODEL.FPN.IN_FEATURES = features
    with pytest.raises(ConfigError, match=message):
        build_backbone(cfg)


# --- names and levels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", "no model 'resnet_18'.*did you mean resnet18"),
        ("resnet50_in21", "did you mean resnet50_in21k"),
        ("qqqq", r"no model 'qqqq'.*timm.list_models\(\)"),
        ("resnet18.nobody", "resnet18 has no weights tagged 'nobody'.*known: resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18", "no model 'hf-hub:timm/resnet18'"),
        ("mixer_s16_224", r"mixer_s16_224 takes images of \(224, 224\) only"),
        ("inception_v4", "inception_v4 is .* where its stride of"),
    ],
)
def test_a_model_that_cannot_be_used_says_why(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(config(name, OUT_LEVELS=(3,)))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "not rising"),
        ((0, 1), "not rising"),
        ((3, 3), "not rising"),
        ((4, 3), "not rising"),
        ((4, 5), "level 5 of the timm model convnext_atto, which has 4"),
    ],
)
def test_levels_that_do_not_exist_are_refused(levels, message) -> None:
    with pytest.raises(ConfigError, match=f"OUT_LEVELS.*{message}"):
        build_backbone(config("convnext_atto", OUT_LEVELS=levels))


def test_an_instance_must_give_the_levels() -> None:
    base = timm.create_model("resnet18", features_only=True, out_indices=(2, 3))
    with pytest.raises(ConfigError, match=r"levels \[3, 5\] of a model that gives \[3, 4\]"):
        TimmBackbone(base=base, out_levels=(3, 5))


# --- weights ----------------------------------------------------------------------------------


@pytest.fixture
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def hub_file(caches: Path, name: str) -> Path:
    repo = timm.get_pretrained_cfg(name).hf_hub_id.replace("/", "--")
    folder = caches / "hub" / f"models--{repo}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc" / "model.safetensors"


def torch_file(caches: Path, name: str) -> Path:
    file_name = timm.get_pretrained_cfg(name).url.rsplit("/", 1)[1]
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / file_name


@pytest.mark.parametrize("place", [hub_file, torch_file])
def test_pretrained_weights_come_from_either_cache(empty_caches, place) -> None:
    from safetensors.torch import save_file

    whole = timm.create_model("resnet18")
    shake_norms(whole)
    path = place(empty_caches, "resnet18")
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(whole.state_dict(), str(path))
    assert find_pretrained_file("resnet18") == path
    backbone = build_backbone(config("resnet18", PRETRAINED=True))
    loaded = backbone.base.state_dict()
    assert len(loaded) > 90
    for key, value in loaded.items():
        torch.testing.assert_close(value, whole.state_dict()[key], rtol=0, atol=0)


def test_missing_weights_say_how_to_get_them_and_ask_no_network(empty_caches) -> None:
    with pytest.raises(WeightsError, match="timm model resnet18 .*create_model.*MODEL.WEIGHTS"):
        build_backbone(config("resnet18", PRETRAINED=True))
    with pytest.raises(WeightsError, match=r"convnext_tiny\.fb_in22k"):
        build_backbone(config("convnext_tiny_21k", PRETRAINED=True, OUT_LEVELS=(2, 3, 4)))


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny_21k"])
def test_other_weights_can_take_their_place(empty_caches, caplog, name) -> None:
    cfg = config(name, PRETRAINED=True, OUT_LEVELS=(2, 3, 4))
    cfg.MODEL.WEIGHTS = "whole_detector.pth"
    assert build_backbone(cfg).output_shape().keys() == {"layer2", "layer3", "layer4"}
    assert "MODEL.WEIGHTS must have them" in caplog.text


def test_weights_that_cannot_be_read_name_the_file(empty_caches) -> None:
    path = torch_file(empty_caches, "resnet18")
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}.*resnet18"):
        build_backbone(config("resnet18", PRETRAINED=True))


def test_a_model_without_weights_says_so(empty_caches) -> None:
    name = next(name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name))
    with pytest.raises(WeightsError, match=f"timm has no weights for {name} "):
        find_pretrained_file(name)
    with pytest.raises(ConfigError, match="resnet50_in21k has no weights in timm"):
        build_backbone(config("resnet50_in21k", PRETRAINED=True))
