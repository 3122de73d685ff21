"""Necks, heads and cascade of the paper inside whole detectors, and their parameter counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ext_common.errors import ConfigError
from frozen_backbone_ext.model_setup import frozen_trunk
from frozen_backbone_ext.modeling.box_head import ConvFCNormHead
from frozen_backbone_ext.modeling.nasfpn import NasFpn, NasFpnOptions, resample
from frozen_backbone_ext.modeling.nasfpn_graph import CELLS, NODE_LEVELS, parameter_count
from frozen_backbone_ext.modeling.paper_fpn import NeckShape, PaperFpn, PlainConvNeck
from frozen_backbone_ext.modeling.part_options import PartOptions
from frozen_backbone_ext.modeling.pyramid_backbone import nasfpn_options
from frozen_backbone_ext.modeling.rpn_head import PerLevelNormRPNHead
from tests.frozen_backbone_ext.tiny_frozen import (
    NASFPN,
    frozen_config,
    frozen_model,
    item,
    train_steps,
)

PAPER: dict[str, Any] = {
    **NASFPN,
    "MODEL.MASK_ON": True,
    "MODEL.RPN.HEAD_NAME": "PerLevelNormRPNHead",
    "MODEL.RPN.CONV_DIMS": "[-1, -1]",
    "MODEL.ROI_HEADS.NAME": "PaperCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "ConvFCNormHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 8,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": "[0.5]",
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": "(0.5, 0.7, 0.8)",
    "MODEL.ROI_BOX_CASCADE_HEAD.AVERAGE_LOSSES": True,
    "MODEL.ROI_BOX_CASCADE_HEAD.AVERAGE_LOGITS": True,
    "MODEL.ROI_MASK_HEAD.NAME": "ConvNormMaskHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_paper_detector_trains_and_detects() -> None:
    model = frozen_model(PAPER)
    before = model.roi_heads.box_head[2].convs[0].weight.clone()
    losses = train_steps(model, masks=True)
    assert all(loss.isfinite() for loss in losses)
    assert not torch.equal(model.roi_heads.box_head[2].convs[0].weight, before)
    assert model.backbone.size_divisibility == 128
    assert frozen_trunk(model) is model.backbone.bottom_up
    with torch.no_grad():
        found = model.eval()([item(size=100)])[0]["instances"]
    assert found.image_size == (100, 100)
    assert len(found) > 0
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.eps == 1e-4]
    assert norms
    assert {m.momentum for m in norms} == {0.003}


@pytest.mark.parametrize("repeats", [5, 7])
def test_parameters_are_those_of_the_specification(repeats: int) -> None:
    channels = (512, 1024, 2048)
    expected = {5: (21_590_528, 21_721_856), 7: (29_858_816, 29_990_144)}[repeats]
    with torch.device("meta"):
        options = NasFpnOptions(repeats=repeats)
        assert _count(NasFpn(channels, options)) == expected[0]
        assert _count(NasFpn(channels, options.as_mmdetection())) == expected[1]
    assert parameter_count(256, channels, repeats) == expected[0]


@pytest.mark.parametrize("merge", ["searched", "sum"])
def test_nasfpn_is_its_table(merge: str) -> None:
    """A plain-loop twin that goes through the table of the specification."""
    options = NasFpnOptions(repeats=2, width=4, merge=merge, parts=PartOptions(activation="silu"))
    model = NasFpn((4, 5, 6), options).eval()
    assert "3" not in model.lateral  # the width is right already
    features = [torch.randn(2, c, 32 // s, 16 // s) for c, s in ((4, 1), (5, 2), (6, 4))]
    with torch.no_grad():
        maps = [features[0], model.lateral["4"](features[1]), model.lateral["5"](features[2])]
        maps += [F.max_pool2d(maps[-1], 2, 2)]
        maps += [F.max_pool2d(maps[-1], 2, 2)]
        for repeat in range(2):
            nodes = list(maps)
            for number, cell in enumerate(CELLS):
                high, low = (
                    resample(nodes[n], NODE_LEVELS[n], cell.level) for n in (cell.coarse, cell.fine)
                )
                gate = high.amax((2, 3), keepdim=True).sigmoid() if cell.attention else 1.0
                merged = high + low * (1.0 if merge == "sum" else gate)
                if cell.extra is not None:
                    merged = merged + nodes[cell.extra]
                part: Any = model.cells[repeat][number]
                nodes.append(part.bn(part.conv(F.silu(merged))))
            maps = [nodes[7], nodes[8], nodes[9], nodes[11], nodes[10]]
        for found, expected in zip(model(features), maps, strict=True):
            torch.testing.assert_close(found, expected)


def test_bottleneck_cells_and_recomputation() -> None:
    parts = PartOptions(activation="silu")
    options = NasFpnOptions(
        repeats=2, width=4, cell="bottleneck", merge="sum", parts=parts, checkpoint=True
    )
    model = NasFpn((4, 5, 6), options).train()
    features = [torch.randn(2, c, 16 // s, 16 // s) for c, s in ((4, 1), (5, 2), (6, 4))]
    maps = model(features)
    assert [tuple(m.shape) for m in maps] == [(2, 4, s, s) for s in (16, 8, 4, 2, 1)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.cells.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("max", "coarse", False)),
        ({"VARIANT": "mm"}, ("avg", "fine", True)),
        ({"EXTRA_LEVEL_CONV": "yes", "POOL": "avg"}, ("avg", "coarse", True)),
        ({"VARIANT": "mm", "EXTRA_LEVEL_CONV": "no", "GATE": "coarse"}, ("avg", "coarse", False)),
    ],
    ids=["tf", "mm", "tf with a convolution", "mm without"],
)
def test_single_choices_of_a_variant(changes: dict[str, str], expected: tuple[Any, ...]) -> None:
    cfg = frozen_config({**NASFPN, **{f"MODEL.NASFPN.{k}": v for k, v in changes.items()}})
    options = nasfpn_options(cfg)
    assert (options.pool, options.gate, options.extra_level_conv) == expected
    neck = NasFpn((4, 4, 4), options)
    assert (len(neck.extra) == 2) == expected[2]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnetrs50", 33.6), ("resnetrs101", 61.57), ("tf_efficientnet_b7", 62.1)],
)
def test_trunks_have_the_parameters_of_the_specification(name: str, millions: float) -> None:
    with torch.device("meta"):
        levels = {"features_only": True, "out_indices": (2, 3, 4)}
        assert _count(timm.create_model(name, **levels)) / 1e6 == pytest.approx(millions, abs=0.06)


def test_sizes_that_have_no_p7_are_refused() -> None:
    model = NasFpn((4, 4, 4), NasFpnOptions(repeats=1, width=4))
    with pytest.raises(ConfigError, match="multiples of 128"):
        model([torch.zeros(1, 4, s, s) for s in (24, 12, 6)])
    with pytest.raises(ConfigError, match="do not halve exactly"):
        model([torch.zeros(1, 4, s, s) for s in (17, 8, 4)])


def test_paper_fpn_and_plain_necks() -> None:
    parts = PartOptions(norm="BN")
    fpn = PaperFpn((3, 4, 5), NeckShape(3, 6, width=8, parts=parts)).eval()
    features = [torch.randn(1, c, 16 // s, 16 // s) for c, s in ((3, 1), (4, 2), (5, 4))]
    with torch.no_grad():
        maps = fpn(features)
        top = fpn.lateral["5"](features[2])
        p5 = fpn.smooth["5"](top)
        torch.testing.assert_close(maps[2], fpn.norm["5"](p5))
        torch.testing.assert_close(maps[3], fpn.norm["6"](fpn.smooth["6"](p5)))
        p4 = fpn.lateral["4"](features[1]) + F.interpolate(top, scale_factor=2)
        torch.testing.assert_close(maps[1], fpn.norm["4"](fpn.smooth["4"](p4)))
    neck = PlainConvNeck((3, 4, 5), NeckShape(3, 7, width=8, parts=parts), num_convs=2)
    assert [tuple(m.shape[-2:]) for m in neck.eval()(features)] == [
        (s, s) for s in (16, 8, 4, 2, 1)
    ]
    assert sum(isinstance(m, nn.Conv2d) for m in neck.modules()) == 6
    for changes, message in (
        ({"MODEL.PYRAMID.NECK": "panet"}, "unknown neck"),
        ({"MODEL.PYRAMID.BOTTOM_UP": "build_nothing"}, "no backbone builder"),
        ({"MODEL.FPN.IN_FEATURES": "['res4','res5']"}, "strides 8, 16 and 32"),
        ({"MODEL.PYRAMID.NECK": "fpn", "MODEL.PYRAMID.MAX_LEVEL": 4}, "below the level of res5"),
        ({"MODEL.NASFPN.GATE": "both"}, "'both' is not known"),
        ({"MODEL.NASFPN.EXTRA_LEVEL_CONV": "true"}, "unknown value 'true'"),
        ({"MODEL.DETECTOR_PARTS.ACTIVATION": "gelu"}, "unknown activation"),
    ):
        with pytest.raises(ConfigError, match=message):
            frozen_model({**NASFPN, **changes})


def test_rpn_norms_are_per_level_and_convolutions_shared() -> None:
    torch.manual_seed(0)
    head = PerLevelNormRPNHead(
        in_channels=4, num_levels=2, num_anchors=3, conv_dims=(-1,), parts=PartOptions("BN")
    ).eval()
    head.norms[0][1].running_mean.fill_(5.0)  # type: ignore[index, union-attr, operator]
    image = torch.randn(1, 4, 6, 6)
    logits, deltas = head([image, image])
    assert logits[0].shape == (1, 3, 6, 6)
    assert deltas[1].shape == (1, 12, 6, 6)
    assert not torch.allclose(logits[0], logits[1])


def test_box_heads_count_as_published() -> None:
    shape = ShapeSpec(channels=256, height=7, width=7)
    with torch.device("meta"):
        one = ConvFCNormHead(shape, conv_dims=[256] * 4, fc_dims=[1024])
        two = ConvFCNormHead(shape, conv_dims=[256] * 4, fc_dims=[1024, 1024])
    assert round(_count(one) / 1e6, 2) == 15.21
    assert round(_count(two) / 1e6, 2) == 16.26
    head = ConvFCNormHead(
        ShapeSpec(channels=2, height=3, width=3), conv_dims=[2], fc_dims=[4], parts=PartOptions()
    ).train()
    for regions in (0, 1, 2):
        assert head(torch.randn(regions, 2, 3, 3)).shape == (regions, 4)


def test_cascade_choices() -> None:
    model = frozen_model(PAPER)
    heads = model.roi_heads
    torch.manual_seed(1)
    features = {
        f"p{level}": torch.randn(1, 8, 64 >> (level - 3), 64 >> (level - 3))
        for level in (3, 4, 5, 6, 7)
    }
    features = {k: v.requires_grad_() for k, v in features.items()}
    proposals = [_proposals()]
    model.eval()
    with torch.no_grad():
        averaged = heads._forward_box(features, proposals)[0]
        heads.average_logits = False
        plain = heads._forward_box(features, proposals)[0]
        stage_logits, boxes, given = [], None, proposals
        for stage in range(3):
            if boxes is not None:
                given = heads._create_proposals_from_boxes(boxes, [given[0].image_size])
            out = heads._run_stage([features[f] for f in heads.box_in_features], given, stage)
            stage_logits.append(out[0])
            boxes = heads.box_predictor[stage].predict_boxes(out, given)
    by_logits = F.softmax(sum(stage_logits) / 3, dim=1)[:, :-1].max()
    by_scores = (sum(F.softmax(x, dim=1) for x in stage_logits) / 3)[:, :-1].max()
    np.testing.assert_allclose(averaged.scores.max(), by_logits, rtol=1e-5)
    np.testing.assert_allclose(plain.scores.max(), by_scores, rtol=1e-5)


def _proposals() -> Any:
    from detectron2.structures import Boxes, Instances

    proposals = Instances((512, 512))
    proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 200, 200], [100, 50, 400, 300]]))
    proposals.objectness_logits = torch.zeros(2)
    return proposals
