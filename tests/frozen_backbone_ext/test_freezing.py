"""A frozen trunk stays what it is, whatever kind of backbone it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling import build_model as build_plain_model
from torch import nn

from ext_common.checkpoint import load_model_weights
from ext_common.errors import ConfigError, WeightsError
from ext_common.modeling.build import build_model
from ext_common.modeling.swin import SwinSize, SwinTransformer
from ext_common.modeling.timm_backbone import TimmBackbone
from ext_common.solver import build_optimizer
from frozen_backbone_ext.model_setup import frozen_trunk, has_own_weights, set_up_backbone
from frozen_backbone_ext.modeling.fast_trunk import FastOptions
from frozen_backbone_ext.modeling.freezing import (
    FrozenTrunk,
    freeze_trunk,
    state_without_trunk,
)
from frozen_backbone_ext.modeling.trunk import find_trunk, trunk_hash
from regionclip_ext.modeling.clip_resnet import ClipResNet
from regionclip_ext.modeling.encoder_shapes import ClipResNetShape
from tests.frozen_backbone_ext.tiny_frozen import (
    frozen_config,
    frozen_model,
    train_steps,
    trained_looking,
)


def _saved_inside(trunk: nn.Module, images: torch.Tensor) -> tuple[int, Any]:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        maps = trunk(images)
    return len(saved), maps


def test_training_changes_nothing_in_the_trunk() -> None:
    model = frozen_model()
    name, trunk = find_trunk(model)
    assert name == "backbone.bottom_up"
    before = copy.deepcopy(trunk.state_dict())
    losses = train_steps(model)
    model.eval()
    model.train()
    losses += train_steps(model, 1)
    assert all(loss.isfinite() for loss in losses)
    after = trunk.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module.training for module in trunk.modules())
    assert all(parameter.grad is None for parameter in trunk.parameters())
    assert any(p.grad is not None for p in model.backbone.fpn_lateral3.parameters())
    optimizer = build_optimizer(frozen_config(), model)
    inside = {id(parameter) for parameter in trunk.parameters()}
    assert not [p for g in optimizer.param_groups for p in g["params"] if id(p) in inside]
    count, maps = _saved_inside(trunk, torch.randn(1, 3, 64, 64))
    assert count == 0
    assert not any(map_.requires_grad for map_ in maps.values())


def test_without_the_freeze_the_same_training_changes_the_trunk() -> None:
    model = frozen_model({"MODEL.BACKBONE_FREEZE.POLICY": ""})
    trunk = find_trunk(model)[1]
    assert frozen_trunk(model) is None
    before = trunk_hash(trunk)
    train_steps(model, 1)
    assert trunk_hash(trunk) != before


def _timm(name: str, levels: tuple[int, ...], norm: str = "BN", **options: Any) -> TimmBackbone:
    indices = tuple(level - 1 for level in levels)
    base = timm.create_model(name, features_only=True, out_indices=indices, **options)
    return TimmBackbone(base=base, out_levels=levels, norm=norm)


def _regnet() -> nn.Module:
    from detectron2.modeling.backbone import RegNet
    from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem

    return RegNet(
        stem_class=SimpleStem,
        stem_width=8,
        block_class=ResBottleneckBlock,
        depth=4,
        w_a=8,
        w_0=8,
        w_m=2.0,
        group_width=8,
        norm="BN",
        out_features=["s1"],
    )


class ClipLike(nn.Module):
    """CLIP's stem and anti-aliased stride: a plain module with ordinary batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.avgpool = nn.AvgPool2d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res2": self.dropout(self.avgpool(self.bn1(self.conv1(x)).relu()))}


def _swin(**options: Any) -> nn.Module:
    size = SwinSize(8, (1, 1), (1, 2), window=4, drop_path=0.5)
    return SwinTransformer(size=size, out_features=(0, 1), **options)


def _clip_resnet() -> nn.Module:
    shape = ClipResNetShape(layers=(1, 1, 1, 1), width=8, heads=2, embed_dim=8, resolution=64)
    return ClipResNet(shape, out_features=("res3", "res5"), attention_pool=False)


TRUNKS = {
    "resnet": lambda: frozen_model({"MODEL.BACKBONE_FREEZE.POLICY": ""}).backbone.bottom_up,
    "regnet": _regnet,
    "timm resnet-rs": lambda: _timm("resnetrs50", (2, 3)),
    "timm efficientnet": lambda: _timm("tf_efficientnet_b0", (3, 4), drop_path_rate=0.5),
    "timm convnext": lambda: _timm("convnext_atto", (1, 2), drop_path_rate=0.5),
    "timm frozen norms": lambda: _timm("resnet18", (2, 3), norm="FrozenBN"),
    "swin": _swin,
    "swin recomputed": lambda: _swin(use_checkpoint=True),
    "clip resnet": _clip_resnet,
    "dropout": ClipLike,
}


@pytest.mark.parametrize("name", TRUNKS)
def test_every_kind_of_backbone(name: str) -> None:
    torch.manual_seed(0)
    trunk = TRUNKS[name]()
    trained_looking(trunk)
    images = torch.randn(2, 3, 64, 64)
    trunk.eval()
    with torch.no_grad():
        expected = trunk(images)
    folded = copy.deepcopy(trunk)
    frozen = freeze_trunk(trunk)
    frozen.train()
    before = trunk_hash(frozen)
    count, maps = _saved_inside(frozen, images)
    assert count == 0
    assert trunk_hash(frozen) == before
    for key, map_ in maps.items():
        assert torch.equal(map_, expected[key])
    fast = freeze_trunk(folded, FastOptions(fold_bn=True, channels_last=True))
    for key, map_ in fast(images).items():
        scale = expected[key].abs().max()
        assert (map_ - expected[key]).abs().max() <= 1e-4 * scale
    assert fast._frozen.fast is not None
    layer_norms = name in ("timm convnext", "swin", "swin recomputed")
    assert (fast._frozen.fast.folded > 0) != layer_norms
    assert set(fast.state_dict()) == set(frozen.state_dict())


def test_the_fast_copy_follows_loading_and_moving() -> None:
    torch.manual_seed(0)
    trunk = freeze_trunk(ClipLike(), FastOptions(fold_bn=True, dtype="bf16"))
    images = torch.randn(1, 3, 32, 32)
    first = trunk(images)["res2"]
    assert first.dtype == torch.float32
    assert trunk.conv1.weight.dtype == torch.float32
    other = ClipLike()
    trained_looking(other)
    trunk.load_state_dict(other.state_dict())
    expected = other.eval()(images)["res2"]
    assert not torch.equal(trunk(images)["res2"], first)
    torch.testing.assert_close(trunk(images)["res2"], expected, atol=0.05, rtol=0.05)
    assert trunk._frozen.fast is not None
    trunk.to(torch.device("cpu"))
    assert trunk._frozen.fast is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trunk(images)["res2"].dtype == torch.bfloat16
    assert isinstance(copy.deepcopy(trunk), FrozenTrunk)


def test_detectron2s_own_builder_gives_the_same_detections(tmp_path: Path) -> None:
    model = frozen_model({"MODEL.BACKBONE_FREEZE.FOLD_BN": True})
    train_steps(model, 1)
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    plain = build_plain_model(frozen_config())
    DetectionCheckpointer(plain).load(str(path))
    picture = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    with torch.no_grad():
        ours, theirs = (m.eval()(picture)[0]["instances"] for m in (model, plain))
    assert len(ours) > 0
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=1e-2, rtol=0)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=0)


def test_a_checkpoint_without_the_trunk_knows_it_by_its_hash(tmp_path: Path) -> None:
    weights = tmp_path / "trunk.pth"
    source = frozen_model()
    trunk = find_trunk(source)[1]
    torch.save(dict(trunk.state_dict()), weights)
    changes = {
        "MODEL.BACKBONE_FREEZE.WEIGHTS": str(weights),
        "MODEL.BACKBONE_FREEZE.SAVE": False,
        "MODEL.BACKBONE_FREEZE.HASH": trunk_hash(trunk)[:12],
    }
    model = build_model(frozen_config(changes))
    frozen = frozen_trunk(model)
    assert frozen is not None
    assert has_own_weights(frozen, frozen_config(changes))
    small = tmp_path / "small.pth"
    state = state_without_trunk(model, "backbone.bottom_up", frozen)
    assert not [key for key in state if "res4" in key]
    torch.save({"model": state}, small)
    again = build_model(frozen_config(changes))
    load_model_weights(again, small)
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items() if "frozen_hash" not in k)
    changes["MODEL.BACKBONE_FREEZE.HASH"] = ""
    torch.save(dict(find_trunk(frozen_model(seed=5))[1].state_dict()), weights)
    other = build_model(frozen_config(changes))
    with pytest.raises(WeightsError, match="the checkpoint was trained on"):
        load_model_weights(other, small)


def test_wrong_weights_and_wrong_policy_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "trunk.pth"
    torch.save(dict(find_trunk(frozen_model())[1].state_dict()), weights)
    with pytest.raises(WeightsError, match="asks for 1234"):
        frozen_model(
            {
                "MODEL.BACKBONE_FREEZE.WEIGHTS": str(weights),
                "MODEL.BACKBONE_FREEZE.HASH": "1234",
            }
        )
    with pytest.raises(ConfigError, match="unknown policy 'all'"):
        frozen_model({"MODEL.BACKBONE_FREEZE.POLICY": "all"})
    with pytest.raises(ConfigError, match="fp8"):
        FastOptions(dtype="fp8")
    with pytest.raises(ConfigError, match="no part called backbone"):
        find_trunk(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("builder", "kind"),
    [
        ("build_resnet_backbone", "ResNet"),
        ("build_p35_resnet_fpn_backbone", "ResNet"),
        ("build_p37_resnet_bifpn_backbone", "ResNet"),
        ("build_p35_timm_fpn_backbone", "TimmBackbone"),
        ("build_p37_timm_bifpn_backbone", "TimmBackbone"),
        ("build_swintransformer_fpn_backbone", "SwinTransformer"),
        ("build_pyramid_backbone", "ResNet"),
        ("build_adapted_backbone", "ResNet"),
    ],
)
def test_the_trunk_is_found_alone_and_under_every_neck(builder: str, kind: str) -> None:
    changes = {
        "MODEL.BACKBONE.NAME": builder,
        "MODEL.ADAPTERS.BACKBONE": "build_p35_resnet_fpn_backbone",
        "MODEL.PYRAMID.NECK": "fpn",
        "MODEL.PYRAMID.WIDTH": 8,
        "MODEL.DETECTOR_PARTS.NORM": "BN",
        "MODEL.TIMM.BASE_NAME": "resnet10t",
        "MODEL.TIMM.NORM": "BN",
        "MODEL.BIFPN.NUM_BIFPN": 1,
        "MODEL.BIFPN.OUT_CHANNELS": 32,
    }
    if "timm" in builder or "swin" in builder:
        changes["MODEL.FPN.IN_FEATURES"] = "[]"
    cfg = frozen_config(changes)
    torch.manual_seed(0)
    model = nn.Module()
    model.add_module("backbone", BACKBONE_REGISTRY.get(builder)(cfg, ShapeSpec(channels=3)))
    set_up_backbone(cfg, model)
    trunk = frozen_trunk(model)
    assert trunk is not None
    assert kind in [parent.__name__ for parent in type(trunk).__mro__]
    before = copy.deepcopy(trunk.state_dict())
    trained = [p for p in model.parameters() if p.requires_grad]
    alone = builder == "build_resnet_backbone"
    assert bool(trained) != alone
    backbone: Any = model.train().get_submodule("backbone")
    maps = backbone(torch.randn(2, 3, 128, 128))
    if not alone:
        optimizer = torch.optim.SGD(trained, lr=0.1, weight_decay=0.1)
        sum(map_.square().mean() for map_ in maps.values()).backward()
        optimizer.step()
    after = trunk.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "adapter" not in key)


@torch.no_grad()
def test_the_cache_knows_size_type_and_way_of_computing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = freeze_trunk(ClipLike(), cache_folder=str(tmp_path))
    images = torch.randn(1, 3, 32, 32)

    def misses(network: FrozenTrunk, given: torch.Tensor) -> int:
        before = network._frozen.cache.misses if network._frozen.cache else 0
        network(given)
        assert network._frozen.cache is not None
        return network._frozen.cache.misses - before

    assert misses(trunk, images) == 1
    assert misses(trunk, images) == 0
    assert misses(trunk, images[..., :16]) == 1
    assert misses(trunk, nn.functional.pad(images, (0, 32))) == 1  # padding belongs to it
    twin = ClipLike()
    twin.load_state_dict(trunk.state_dict())
    same = freeze_trunk(copy.deepcopy(twin), cache_folder=str(tmp_path))
    assert misses(same, images) == 0
    half = freeze_trunk(copy.deepcopy(twin), FastOptions(dtype="bf16"), cache_folder=str(tmp_path))
    assert misses(half, images) == 1
    folded = freeze_trunk(twin, FastOptions(fold_bn=True), cache_folder=str(tmp_path))
    assert misses(folded, images) == 1
    mixed = freeze_trunk(copy.deepcopy(same), cache_folder=str(tmp_path))
    mixed._frozen.forget()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert misses(mixed, images) == 1
        assert mixed(images)["res2"].dtype == torch.bfloat16
    cache = same._frozen.cache
    assert cache is not None
    names = {cache.path(images[0].to(kind)) for kind in (torch.float32, torch.float64)}
    names.add(cache.path(images[0].to(torch.bfloat16)))
    assert len(names) == 3


def test_cached_maps_are_of_the_same_pixels_and_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = freeze_trunk(ClipLike(), cache_folder=str(tmp_path))
    images = torch.randn(3, 3, 32, 32)
    first = trunk(images[:2])["res2"]
    again = trunk(images)["res2"]
    cache = trunk._frozen.cache
    assert cache is not None
    assert (cache.hits, cache.misses) == (2, 3)
    assert torch.equal(again[:2], first)
    torch.testing.assert_close(again, trunk.compute(images)["res2"])
    next(tmp_path.rglob("*.pt")).write_bytes(b"damaged")
    assert torch.equal(trunk(images)["res2"], again)
    assert cache.misses == 4
    assert cache.path(images[0]) != cache.path(images[0] + 1e-6)
    other = ClipLike()
    trunk.load_state_dict(other.state_dict())
    assert not torch.equal(trunk(images)["res2"], again)
    assert trunk._frozen.cache is not cache
