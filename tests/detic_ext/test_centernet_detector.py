"""CenterNet alone as a detector: what it learns, what it gives, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import nms

import detic_ext  # noqa: F401 - registers the model parts
from detic_ext.modeling.centernet.decode import decode
from detic_ext.modeling.centernet.detector import check_centernet_detector
from detic_ext.modeling.centernet.more_positives import more_positive_cells
from detic_ext.modeling.centernet.options import DecodeOptions, TargetOptions
from ext_common.config import load_config
from ext_common.errors import ConfigError

SIZE = 64
BOXES = [[4.0, 6, 34, 30], [36.0, 30, 62, 60]]


def tiny_config(*opts: Any) -> CfgNode:
    """R18 with thin P3 to P5 and two convolutions per tower; three classes."""
    settings: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "CenterNetDetector",
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.PROPOSAL_GENERATOR.NAME": "CenterNet",
        "MODEL.BACKBONE.NAME": "build_p35_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": "['res3','res4','res5']",
        "MODEL.FPN.IN_FEATURES": "['res3','res4','res5']",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.CENTERNET.NUM_CLASSES": 3,
        "MODEL.CENTERNET.IN_FEATURES": "['p3','p4','p5']",
        "MODEL.CENTERNET.FPN_STRIDES": "[8,16,32]",
        "MODEL.CENTERNET.SOI": "[[0,24],[20,48],[40,10000000]]",
        "MODEL.CENTERNET.NUM_CLS_CONVS": 2,
        "MODEL.CENTERNET.NUM_BOX_CONVS": 2,
    }
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        settings[key] = value
    return load_config("", [str(word) for pair in settings.items() for word in pair])


def tiny_model(*opts: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config(*opts))


def pictures() -> list[dict[str, Any]]:
    """Two pictures, one of them with a red and a blue rectangle of classes 0 and 2."""
    image = torch.full((3, SIZE, SIZE), 110, dtype=torch.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES, ((20, 20, 250), (250, 20, 20)), strict=True):
        image[:, int(y1) : int(y2), int(x1) : int(x2)] = torch.tensor(colour)[:, None, None]
    items = []
    for picture, boxes, classes in (
        (image, BOXES, [0, 2]),
        (torch.full_like(image, 110), [], []),
    ):
        truth = Instances((SIZE, SIZE))
        truth.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        truth.gt_classes = torch.tensor(classes, dtype=torch.long)
        items.append({"image": picture, "instances": truth, "height": SIZE, "width": SIZE})
    return items


def losses_of(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    with EventStorage(0):
        return model.train()(batch)


HEADS = {
    "classes": ([], {"loss_centernet_pos", "loss_centernet_neg", "loss_centernet_loc"}),
    "both": (
        ["MODEL.CENTERNET.WITH_AGN_HM", True],
        {
            "loss_centernet_pos",
            "loss_centernet_neg",
            "loss_centernet_agn_pos",
            "loss_centernet_agn_neg",
            "loss_centernet_loc",
        },
    ),
    "objects": (
        ["MODEL.CENTERNET.WITH_AGN_HM", True, "MODEL.CENTERNET.ONLY_PROPOSAL", True],
        {"loss_centernet_agn_pos", "loss_centernet_agn_neg", "loss_centernet_loc"},
    ),
    "as proposals": (
        ["MODEL.CENTERNET.AS_PROPOSAL", True],
        {"loss_centernet_pos", "loss_centernet_neg", "loss_centernet_loc"},
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_losses_and_detections_of_every_head(head) -> None:
    opts, names = HEADS[head]
    model = tiny_model(*opts, "MODEL.CENTERNET.INFERENCE_TH", 1e-4)
    losses = losses_of(model, pictures())
    assert set(losses) == names
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        results = model.eval()(pictures())
    assert model.num_classes == (1 if head == "objects" else 3)
    for result in results:
        found = result["instances"]
        assert len(found) > 0
        assert set(found.get_fields()) >= {"pred_boxes", "scores", "pred_classes"}
        assert torch.all(found.scores[:-1] >= found.scores[1:])
        assert found.pred_classes.min() >= 0
        assert found.pred_classes.max() < model.num_classes
        boxes = found.pred_boxes.tensor
        assert boxes.min() >= 0
        assert boxes.max() <= SIZE


def test_it_learns_classes_and_boxes() -> None:
    one_level = {"IN_FEATURES": "['p3']", "FPN_STRIDES": "[8]", "SOI": "[[0,10000000]]"}
    opts = [word for key, value in one_level.items() for word in (f"MODEL.CENTERNET.{key}", value)]
    model, batch = tiny_model(*opts), pictures()
    # boxes start with sides of 16 strides, twice this picture: 40 steps are too few from there
    nn.init.constant_(model.proposal_generator.centernet_head.bbox_pred.bias, 2.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found, empty = (result["instances"] for result in model.eval()(batch))
    best = found[:2]
    assert sorted(best.pred_classes.tolist()) == [0, 2]
    truth = Boxes(torch.tensor(BOXES))[best.pred_classes.div(2, rounding_mode="floor")]
    assert pairwise_iou(best.pred_boxes, truth).diag().min() > 0.6
    assert best.scores.min() > 2 * float(empty.scores.max() if len(empty) else 0.0)


def test_boxes_come_in_the_requested_size() -> None:
    model = tiny_model("MODEL.CENTERNET.INFERENCE_TH", 1e-4).eval()
    plain = {"image": torch.randint(0, 256, (3, 48, 60), dtype=torch.uint8)}
    with torch.no_grad():
        own, larger = model([plain, {**plain, "height": 96, "width": 180}])
    assert own["instances"].image_size == (48, 60)
    assert larger["instances"].image_size == (96, 180)
    scale = torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(
        larger["instances"].pred_boxes.tensor, own["instances"].pred_boxes.tensor * scale
    )
    torch.testing.assert_close(larger["instances"].scores, own["instances"].scores)


def test_its_keys_are_those_of_a_two_stage_model() -> None:
    keys = set(tiny_model("MODEL.CENTERNET.WITH_AGN_HM", True).state_dict())
    head = "proposal_generator.centernet_head."
    assert {f"{head}cls_logits.weight", f"{head}agn_hm.bias", f"{head}scales.2.scale"} <= keys
    assert {key.split(".")[0] for key in keys} == {"backbone", "proposal_generator"}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], "detects with CenterNet, not RPN"),
        (["MODEL.CENTERNET.ONLY_PROPOSAL", True], "leaves no heatmap"),
        (["MODEL.MASK_ON", True], "gives boxes only"),
    ],
)
def test_impossible_configurations_are_refused(opts, message) -> None:
    check_centernet_detector(tiny_config(), True)
    cfg = tiny_config(*opts)
    with pytest.raises(ConfigError, match=message):
        check_centernet_detector(cfg, True)
    cfg.MODEL.META_ARCHITECTURE = "CustomRCNN"
    check_centernet_detector(cfg, True)


@pytest.mark.parametrize("training", [True, False])
def test_boxes_are_kept_class_by_class(training: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = [torch.rand(2, 4, n, n, generator=generator) * 4 for n in (12, 6)]
    scores = [torch.rand(2, 3, n, n, generator=generator) for n in (12, 6)]
    options = DecodeOptions(pre_topk=(99, 70), post_topk=(20, 9), nms_threshold=(0.5, 0.3))
    free = replace(options, box_nms=False, post_topk=(999, 999))
    arguments = (boxes, scores, None, (8, 16), [(96, 96)] * 2)
    ours = decode(*arguments, options, training=training)
    candidates = decode(*arguments, free, training=training)
    limit = options.post_topk[0 if training else 1]
    threshold = options.nms_threshold[0 if training else 1]
    for kept, every in zip(ours, candidates, strict=True):
        expected: list[int] = []
        for k in range(3):
            own = (every.pred_classes == k).nonzero()[:, 0]
            chosen = nms(every.pred_boxes.tensor[own], every.scores[own], threshold)
            expected += own[chosen].tolist()
        assert limit < len(expected) < len(every)
        best = every[sorted(expected)[:limit]]  # they come by falling score
        assert torch.equal(kept.scores, best.scores)
        assert torch.equal(kept.pred_classes, best.pred_classes)
        assert torch.equal(kept.pred_boxes.tensor, best.pred_boxes.tensor)


def test_boxes_as_good_as_the_last_one_stay() -> None:
    apart = torch.full((1, 4, 6, 6), 0.2)
    options = DecodeOptions(pre_topk=(30, 30), post_topk=(9, 9), nms_threshold=(0.5, 0.5))
    (found,) = decode(
        [apart], [torch.full((1, 1, 6, 6), 0.4)], None, (8,), [(48, 48)], options, training=True
    )
    assert len(found) == 30


def test_a_centre_cell_beside_a_thin_box_is_no_further_positive() -> None:
    # its centre (153.5, 97.3) is in cell (9, 6) of stride 16, whose place (152, 104) is below the box
    box_14 = torch.tensor([[83.0, 91.6, 224.0, 103.0]])
    options = TargetOptions(strides=(8, 16), sizes=((0, 80), (64, 160)), more_positives=True)
    cells, labels = more_positive_cells(
        [box_14],
        [torch.tensor([2])],
        [(32, 32), (16, 16)],
        torch.full((32 * 32 + 16 * 16, 4), 0.01),
        lambda predicted, wanted: torch.ones(wanted.shape[:-1]),
        options,
    )
    assert cells.tolist() == [12 * 32 + 19]
    assert labels.tolist() == [2]
