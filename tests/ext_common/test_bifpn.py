"""BiFPN: the paper's equations written out, connections, any size, builders, errors."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.config import get_config
from ext_common.errors import ConfigError
from ext_common.modeling import bifpn as bifpn_module
from ext_common.modeling.bifpn import BiFPN, BiFPNLayer, FusionNode, halve, upsample_to
from tests.ext_common.test_timm_backbone import config as timm_config


class Steps(Backbone):
    """A backbone of three strided convolutions: maps a, b, c of strides 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 9, stride=8, padding=4)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.c = nn.Conv2d(6, 5, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        a = self.a(images)
        b = self.b(a)
        return {"a": a, "b": b, "c": self.c(b)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=channels, stride=stride)
            for name, channels, stride in (("a", 4, 8), ("b", 6, 16), ("c", 5, 32))
        }


def neck(**options: object) -> BiFPN:
    torch.manual_seed(0)
    defaults = {"in_features": ["a", "b", "c"], "out_channels": 32, "num_layers": 2}
    return BiFPN(bottom_up=Steps(), **{**defaults, **options})


def shake(module: nn.Module) -> None:
    """Fusion weights that differ, some of them negative."""
    for node in module.modules():
        if isinstance(node, FusionNode):
            nn.init.uniform_(node.weight, -0.3, 1.0)


# --- the paper's equations --------------------------------------------------------------------


def fuse(node: FusionNode, *maps: Tensor) -> Tensor:
    """Section 3.3: O = sum(w I) / (eps + sum(w)), then convolution, norm and swish."""
    weights = [max(float(w), 0.0) for w in node.weight.detach()]
    total = sum(w * map_ for w, map_ in zip(weights, maps, strict=True)) / (1e-4 + sum(weights))
    convolved = node.conv(total)
    return convolved * torch.sigmoid(convolved)


def by_hand(layer: BiFPNLayer, p: dict[int, Tensor]) -> dict[int, Tensor]:
    """The two passes over levels 3 to 7, one line per node of figure 2d."""
    middle = {7: p[7]}
    for level in (6, 5, 4, 3):
        finer = F.interpolate(middle[level + 1], scale_factor=2)
        finer = finer[:, :, : p[level].shape[2], : p[level].shape[3]]
        middle[level] = fuse(layer.down[level - 3], p[level], finer)
    out = {3: middle[3]}
    for level in (4, 5, 6):
        pooled = F.max_pool2d(out[level - 1], 3, 2, 1)
        out[level] = fuse(layer.up[level - 4], p[level], middle[level], pooled)
    out[7] = fuse(layer.up[3], p[7], F.max_pool2d(out[6], 3, 2, 1))
    return out


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("finest", [(32, 48), (19, 25)])
def test_a_layer_is_what_the_paper_writes(finest, separable) -> None:
    layer = BiFPNLayer(5, 32, norm="GN", separable=separable)
    shake(layer)
    sizes = [finest]
    while len(sizes) < 5:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    levels = [torch.randn(2, 32, *size) for size in sizes]
    with torch.no_grad():
        outputs = layer(levels)
        expected = by_hand(layer, dict(enumerate(levels, start=3)))
    for level, features in enumerate(outputs, start=3):
        torch.testing.assert_close(features, expected[level], rtol=1e-4, atol=1e-5)


def test_the_whole_neck_by_hand() -> None:
    model = neck()
    shake(model)
    images = torch.randn(1, 3, 200, 264)
    with torch.no_grad():
        maps = model.bottom_up(images)
        p = {3 + i: model.lateral[i](maps[name]) for i, name in enumerate("abc")}
        p[6] = F.max_pool2d(model.top(maps["c"]), 3, 2, 1)
        p[7] = F.max_pool2d(p[6], 3, 2, 1)
        for layer in model.layers:
            p = by_hand(layer, p)
        outputs = model(images)
    assert list(outputs) == ["p3", "p4", "p5", "p6", "p7"]
    for level, features in p.items():
        torch.testing.assert_close(outputs[f"p{level}"], features, rtol=1e-4, atol=1e-5)


# --- properties -------------------------------------------------------------------------------


def test_fusion_weights_are_shares() -> None:
    node = FusionNode(3, 32, norm="GN", separable=False)
    nn.init.constant_(node.weight, -1.0)
    zero = node([torch.randn(1, 32, 4, 4) for _ in range(3)])
    assert torch.isfinite(zero).all()  # no weight is left: nothing, not a division by zero
    node.weight.data = torch.tensor([5.0, -2.0, 0.0])
    maps = [torch.randn(1, 32, 4, 4) for _ in range(3)]
    only_first = node([maps[0], torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4)])
    torch.testing.assert_close(node(maps), only_first)
    node.weight.data *= 7  # shares do not change with the scale
    torch.testing.assert_close(node(maps), only_first, rtol=1e-3, atol=1e-3)


def test_every_output_sees_every_input() -> None:
    layer = BiFPNLayer(4, 32, norm="", separable=False)
    for index in range(4):
        levels = [torch.randn(1, 32, 32 // 2**i, 32 // 2**i, requires_grad=True) for i in range(4)]
        layer(levels)[index].sum().backward()
        assert all(level.grad is not None and level.grad.any() for level in levels)


def test_up_and_down() -> None:
    coarse = torch.tensor([[[[1.0, 2], [3, 4]]]])
    up = upsample_to(coarse, torch.zeros(1, 1, 3, 4))
    assert up[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]
    assert torch.equal(
        halve(upsample_to(coarse, torch.zeros(1, 1, 4, 4)))[0, 0, 0], coarse[0, 0, 0]
    )
    assert halve(torch.zeros(1, 1, 5, 8)).shape == (1, 1, 3, 4)


@pytest.mark.parametrize("size", [(64, 64), (65, 33), (8, 200)])
def test_any_image_size(size) -> None:
    model = neck()
    outputs = model(torch.randn(2, 3, *size))
    for name, features in outputs.items():
        stride = model.output_shape()[name].stride
        expected = [-(-side // stride) for side in size]
        assert features.shape == (2, 32, *expected)
    assert model.size_divisibility == 32


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"num_levels": 3}, ["p3", "p4", "p5"]),
        ({"num_levels": 4}, ["p3", "p4", "p5", "p6"]),
        ({"in_features": ["b", "c"], "num_levels": 2}, ["p4", "p5"]),
        ({"norm": "", "out_channels": 10}, ["p3", "p4", "p5", "p6", "p7"]),
        ({"norm": "BN", "out_channels": 10, "separable": True}, ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_levels_norms_and_learning(options, names) -> None:
    model = neck(**options).train()
    outputs = model(torch.randn(2, 3, 128, 128))
    assert list(outputs) == names == list(model.output_shape())
    sum((features * torch.randn_like(features)).sum() for features in outputs.values()).backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in silent if not name.startswith("bottom_up.")}


# --- builders ---------------------------------------------------------------------------------


def swin_config() -> CfgNode:
    cfg = get_config()
    cfg.MODEL.BACKBONE.NAME = "build_swintransformer_bifpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["swin1", "swin2", "swin3"]
    return cfg


def resnet_config() -> CfgNode:
    cfg = get_config()
    cfg.MODEL.BACKBONE.NAME = "build_p37_resnet_bifpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    return cfg


@pytest.mark.parametrize("body", ["swin", "timm", "resnet"])
def test_builders_follow_the_configuration(body) -> None:
    cfg = {
        "swin": swin_config,
        "timm": lambda: timm_config("resnet18", "build_p37_timm_bifpn_backbone"),
        "resnet": resnet_config,
    }[body]()
    with torch.device("meta"):
        backbone = build_backbone(cfg)
        outputs = backbone(torch.zeros(1, 3, 256, 256))
    assert {name: tuple(map_.shape) for name, map_ in outputs.items()} == {
        f"p{level}": (1, 160, 256 // 2**level, 256 // 2**level) for level in range(3, 8)
    }
    assert len(backbone.layers) == 6
    plain = build_plain_body(body, cfg)
    prefix = "bottom_up."
    keys = [key[len(prefix) :] for key in backbone.state_dict() if key.startswith(prefix)]
    assert keys == plain


def build_plain_body(body: str, cfg: CfgNode) -> list[str]:
    """Keys of the backbone alone: checkpoints of it must find their place under ``bottom_up``."""
    name = {"swin": "swintransformer", "timm": "timm", "resnet": "resnet"}[body]
    cfg.MODEL.BACKBONE.NAME = f"build_{name}_backbone"
    with torch.device("meta"):
        return list(build_backbone(cfg).state_dict())


def test_options_reach_the_neck() -> None:
    cfg = resnet_config()
    cfg.MODEL.BIFPN.NUM_LEVELS = 4
    cfg.MODEL.BIFPN.NUM_BIFPN = 2
    cfg.MODEL.BIFPN.OUT_CHANNELS = 24
    cfg.MODEL.BIFPN.NORM = ""
    cfg.MODEL.BIFPN.SEPARABLE_CONV = True
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6"]
    assert len(backbone.layers) == 2
    node = backbone.layers[0].down[0]
    assert node.conv[0].weight.shape == (24, 1, 3, 3)
    assert node.conv[1].weight.shape == (24, 24, 1, 1)
    assert node.conv[1].norm is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_levels": 2}, "NUM_LEVELS: 2 levels over 3 feature maps"),
        ({"in_features": ["c"], "num_levels": 1}, "NUM_LEVELS: 1 levels over 1"),
        ({"num_layers": 0}, "NUM_BIFPN: 0 repeats"),
        ({"out_channels": 100}, "OUT_CHANNELS: 100 channels do not divide into the 32 groups"),
    ],
)
def test_a_neck_that_cannot_be_says_why(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        neck(**options)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["a", "p4"], "p4 is not among the backbone's outputs a, b, c"),
        (["a", "c"], r"strides \[8, 32\] of a, c do not double"),
    ],
)
def test_inputs_that_do_not_fit_are_named(features, message) -> None:
    cfg = resnet_config()
    cfg.MODEL.FPN.IN_FEATURES = features
    with pytest.raises(ConfigError, match=message):
        bifpn_module.build_bifpn(cfg, Steps())
