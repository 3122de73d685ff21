"""Pyramids with other levels than the released P2 to P5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ext_common.checkpoint import match_weights
from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.modeling.build import build_model
from soco_ext.checkpoint.export import for_detectron2, levels_of
from soco_ext.checkpoint.export_mmdet import for_mmdet
from soco_ext.config_checks import check_soco
from soco_ext.modeling.fpn import FeaturePyramid, PyramidLevels
from soco_ext.modeling.shared_norm import synchronised
from tests.soco_ext.test_model import make
from tests.soco_ext.tiny_soco import CONFIGS, samples, tiny_config

WIDTHS = (4, 6, 8, 10)
THREE = ("SOCO.PYRAMID.NUM_OUTS", 3, "SOCO.VIEWS.AWARE_END", 3)


def pyramid(**levels: Any) -> FeaturePyramid:
    torch.manual_seed(0)
    return FeaturePyramid(WIDTHS, 5, PyramidLevels(**levels)).double()


def encoder_maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = (28, 14, 7, 4)
    return [
        torch.randn(3, width, side, side, generator=generator, dtype=torch.float64)
        for width, side in zip(WIDTHS, sides, strict=True)
    ]


def in_plain_steps(neck: FeaturePyramid, maps: list[Tensor]) -> list[Tensor]:
    """The same, written down map by map."""
    sums: list[Tensor] = []
    for lateral, found in reversed(list(zip(neck.lateral_convs, maps, strict=True))):
        side = lateral(found)
        if sums:
            side = side + F.interpolate(sums[0], size=side.shape[-2:], mode="nearest")
        sums.insert(0, side)
    return [conv(x) for conv, x in zip(neck.fpn_convs, sums, strict=False)]


@pytest.mark.parametrize(
    ("start", "end", "used"),
    [(0, -1, (0, 4)), (1, -1, (1, 4)), (0, 3, (0, 3)), (1, 3, (1, 3)), (3, 4, (3, 4))],
)
def test_maps_from_start_to_end(start: int, end: int, used: tuple[int, int]) -> None:
    neck = pyramid(start=start, end=end, outs=used[1] - used[0])
    maps = encoder_maps()
    actual = neck(maps)
    expected = in_plain_steps(neck, maps[slice(*used)])
    assert len(actual) == len(expected) == used[1] - used[0]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_coarser_levels_by_pooling() -> None:
    neck, maps = pyramid(start=1, outs=5), encoder_maps()
    assert len(neck.fpn_convs) == 3
    actual = neck(maps)
    assert [level.shape[-1] for level in actual] == [14, 7, 4, 2, 1]
    torch.testing.assert_close(actual[3], actual[2][..., ::2, ::2])
    torch.testing.assert_close(actual[4], actual[3][..., ::2, ::2])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("extra", ["conv_on_input", "conv_on_output"])
def test_coarser_levels_by_convolutions(extra: str, relu: bool) -> None:
    neck, maps = pyramid(start=2, outs=4, extra=extra, relu_before_extra=relu), encoder_maps()
    actual = neck(maps)
    third, fourth = neck.fpn_convs[2], neck.fpn_convs[3]
    expected = third(maps[3] if extra == "conv_on_input" else actual[1])
    torch.testing.assert_close(actual[2], expected)
    torch.testing.assert_close(actual[3], fourth(F.relu(actual[2]) if relu else actual[2]))
    assert third.conv.stride == fourth.conv.stride == (2, 2)


@pytest.mark.parametrize("use", ["dense", "sparse"])
@pytest.mark.parametrize(
    "words",
    [
        ("SOCO.PYRAMID.START_LEVEL", 1, *THREE),
        ("SOCO.PYRAMID.END_LEVEL", 3, *THREE),
        ("SOCO.PYRAMID.EXTRA_LEVELS", "conv_on_output", "SOCO.PYRAMID.NUM_OUTS", 5),
    ],
    ids=["C3 to C5", "C2 to C4", "P6"],
)
def test_every_trained_weight_has_a_gradient(words: tuple[Any, ...], use: str) -> None:
    model = make("SoCoFPN", "SOCO.LEVEL_USE", use, *words)
    count = 5 if "conv_on_output" in words else 3
    batch = samples(4, 3)
    for sample in batch:
        for pair in sample["pairs"]:
            pair["levels"] = tuple(levels.clamp(max=count - 1) for levels in pair["levels"])
    losses = model(batch)
    assert losses.keys() == {"loss_12", "loss_13"}
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    frozen = [n for n, p in model.encoder.named_parameters() if not p.requires_grad]
    assert bool(frozen) == ("SOCO.PYRAMID.END_LEVEL" in words)
    assert all(name.startswith("layer4.") for name in frozen)


def test_levels_are_exported_under_their_own_numbers() -> None:
    extra = ("SOCO.PYRAMID.EXTRA_LEVELS", "conv_on_input", "SOCO.PYRAMID.NUM_OUTS", 4)
    whole = ("SOCO.BASE_WIDTH", 64, "MODEL.RESNETS.DEPTH", 18)
    cfg = tiny_config("SoCoFPN", "SOCO.PYRAMID.START_LEVEL", 1, *extra, *whole)
    stored = build_model(cfg).state_dict()
    assert levels_of(stored) == range(3, 6)
    assert levels_of({f"module.{name}": value for name, value in stored.items()}) == range(3, 6)
    exported = for_detectron2(stored).tensors
    pyramid_names = {name.split(".")[0] for name in exported if name.startswith("fpn_")}
    assert pyramid_names == {f"fpn_{kind}{n}" for kind in ("lateral", "output") for n in (3, 4, 5)}

    words: list[Any] = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
    words += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 8]
    words += ["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.ROI_BOX_HEAD.NUM_CONV", 4]
    words += ["MODEL.ROI_BOX_HEAD.CONV_DIM", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16]
    words += ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RESNETS.NORM", "BN"]
    words += ["MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"]]
    words += ["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"]]
    words += ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256]]]
    words += ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]]
    detector = build_model(load_config(CONFIGS / "Mask_R50_FPN_1x.yaml", words))
    report, _ = match_weights(exported, detector.state_dict(), by_suffix=True)
    assert not report.unexpected
    assert not any("fpn_" in name or "bottom_up" in name for name in report.missing)


def test_stages_that_no_level_needs_stay_frozen_and_are_not_exported() -> None:
    cfg = tiny_config("SoCoFPN", "SOCO.PYRAMID.END_LEVEL", 3, *THREE)
    for device in ("cpu", "cuda"):
        model = build_model(cfg)
        encoder = synchronised(model.encoder, device)
        trained = {n.split(".")[0] for n, p in encoder.named_parameters() if p.requires_grad}
        assert "layer3" in trained
        assert "layer4" not in trained
    stored = build_model(cfg).state_dict()
    assert levels_of(stored) == range(2, 5)
    for exported in (for_detectron2(stored).tensors, for_detectron2(stored, "backbone").tensors):
        assert any(name.startswith("res4.") for name in exported)
        assert not any(name.startswith("res5.") for name in exported)
    mmdet = for_mmdet(stored).tensors
    assert any(name.startswith("backbone.layer3.") for name in mmdet)
    assert not any(name.startswith("backbone.layer4.") for name in mmdet)


def test_a_batch_of_one_is_checked_for_the_levels_in_use() -> None:
    coarse = ("SOCO.PYRAMID.EXTRA_LEVELS", "conv_on_output", "SOCO.PYRAMID.NUM_OUTS", 5)
    with pytest.raises(ConfigError, match="batch norm needs two values.*two or more images"):
        make("SoCoFPN", *coarse)(samples(1, 3, (64, 64, 64)))
    fine = make("SoCoFPN", "SOCO.PYRAMID.END_LEVEL", 3, *THREE)
    batch = samples(1, 3, (32, 32, 32))
    for pair in batch[0]["pairs"]:
        pair["levels"] = tuple(levels.clamp(max=2) for levels in pair["levels"])
    assert all(loss.isfinite() for loss in fine(batch).values())


@pytest.mark.parametrize("words", [("SOCO.PYRAMID.START_LEVEL", 1), ("SOCO.LEVEL_USE", "sparse")])
def test_keys_of_the_pyramid_are_refused_without_one(words: tuple[Any, ...]) -> None:
    check_soco(tiny_config("SoCoC4", "SOCO.VIEWS.PLAN", "c4_2view"), training=True)
    with pytest.raises(ConfigError, match="SoCoC4 has no pyramid"):
        check_soco(tiny_config("SoCoC4", "SOCO.VIEWS.PLAN", "c4_2view", *words), training=True)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"start": 4}, "START_LEVEL, END_LEVEL: maps 4 to -1"),
        ({"start": 2, "end": 2}, "maps 2 to 2"),
        ({"end": 5, "outs": 5}, "maps 0 to 5"),
        ({"outs": 3}, "NUM_OUTS: 3 levels of 4 maps"),
        ({"extra": "conv"}, "EXTRA_LEVELS: 'conv' is not known.*max_pool, conv_on_input"),
    ],
)
def test_levels_that_cannot_be(levels: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PyramidLevels(**levels)


def test_boxes_go_to_as_many_levels_as_there_are() -> None:
    check_soco(tiny_config("SoCoFPN", "SOCO.PYRAMID.START_LEVEL", 1, *THREE), training=True)
    with pytest.raises(ConfigError, match="boxes go to 4 levels and the pyramid has 5.*0 and 5"):
        check_soco(tiny_config("SoCoFPN", "SOCO.PYRAMID.NUM_OUTS", 5), training=True)
