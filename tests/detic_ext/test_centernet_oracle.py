"""CenterNet beside the authors' (package ``centernet2``) on random pyramids and boxes.

Both have the same weights. Equal losses mean equal targets too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

import detic_ext  # noqa: F401 - registers
from ext_common.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CHANNELS, STRIDES = 32, (8, 16, 32, 64, 128)
CLASSES = 3
PROPOSALS: dict[str, Any] = {
    "MODEL.CENTERNET.ONLY_PROPOSAL": True,
    "MODEL.CENTERNET.WITH_AGN_HM": True,
    "MODEL.CENTERNET.INFERENCE_TH": 0.0001,
    "MODEL.CENTERNET.NMS_TH_TRAIN": 0.9,
    "MODEL.CENTERNET.NMS_TH_TEST": 0.9,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": 60,
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": 40,
}
DETIC = PROPOSALS | {
    "MODEL.CENTERNET.POS_WEIGHT": 0.5,
    "MODEL.CENTERNET.NEG_WEIGHT": 0.5,
    "MODEL.CENTERNET.REG_WEIGHT": 1.0,
    "MODEL.CENTERNET.IGNORE_HIGH_FP": 0.85,
}
CASES: dict[str, dict[str, Any]] = {
    "detic": DETIC,
    "defaults": PROPOSALS,
    "weighted boxes": PROPOSALS | {"MODEL.CENTERNET.NOT_NORM_REG": False},
    "linear iou": PROPOSALS | {"MODEL.CENTERNET.LOC_LOSS_TYPE": "linear_iou"},
    "more positives": PROPOSALS | {"MODEL.CENTERNET.MORE_POS": True},
    "peaks": PROPOSALS | {"MODEL.CENTERNET.CENTER_NMS": True},
    "classes": {"MODEL.CENTERNET.AS_PROPOSAL": True, "MODEL.CENTERNET.INFERENCE_TH": 0.001},
    "classes and heat": {
        "MODEL.CENTERNET.AS_PROPOSAL": True,
        "MODEL.CENTERNET.WITH_AGN_HM": True,
        "MODEL.CENTERNET.INFERENCE_TH": 0.001,
    },
}
COMMON = {
    "MODEL.PROPOSAL_GENERATOR.NAME": "CenterNet",
    "MODEL.CENTERNET.NUM_CLASSES": CLASSES,
    "MODEL.CENTERNET.NUM_BOX_CONVS": 1,
    "MODEL.CENTERNET.NUM_CLS_CONVS": 1,
    "MODEL.DEVICE": "cpu",
}


def make_case(settings: dict[str, Any], seed: int, training: bool) -> dict[str, Any]:
    """Input of both: settings, weights, features, boxes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(192, 256), (256, 224)]
    shapes = [(256 // stride, 256 // stride) for stride in STRIDES]
    features = {
        f"p{level}": torch.randn(2, CHANNELS, *shape, generator=generator)
        # theirs reads class scores in this layout alone (specification 12.13)
        .to(memory_format=torch.channels_last)
        .requires_grad_(training)
        for level, shape in enumerate(shapes, start=3)
    }
    boxes, classes = [], []
    for (height, width), count in zip(sizes, (7, 0 if seed % 2 else 3), strict=True):
        limit = torch.tensor([width, height])
        corner = torch.rand(count, 2, generator=generator) * limit * 0.7
        side = (torch.rand(count, 2, generator=generator) ** 2 * 0.9 + 0.04) * limit
        boxes.append(torch.cat([corner, torch.minimum(corner + side, limit)], dim=1))
        classes.append(torch.randint(CLASSES, (count,), generator=generator))
    case = {
        "settings": COMMON | settings,
        "features": features,
        "boxes": boxes,
        "classes": classes,
        "image_sizes": sizes,
        "training": training,
    }
    torch.manual_seed(seed)
    model = build(case)
    for name, weight in model.named_parameters():
        if "bias" in name and ("hm" in name or "logits" in name):
            torch.nn.init.constant_(weight, -1.0)  # scores that differ
        elif weight.dim() == 4:
            torch.nn.init.normal_(weight, std=0.06)
    return case | {"weights": model.state_dict()}


def build(case: dict[str, Any]) -> torch.nn.Module:
    cfg = load_config("", [str(word) for pair in case["settings"].items() for word in pair])
    shapes = {
        name: ShapeSpec(channels=CHANNELS, stride=stride)
        for name, stride in zip(case["features"], STRIDES, strict=True)
    }
    return build_proposal_generator(cfg, shapes)


def ours(case: dict[str, Any]) -> tuple[dict[str, Tensor], list[Tensor], list[Instances]]:
    model = build(case)
    model.load_state_dict(case["weights"])
    images = ImageList(torch.zeros(2, 3, 256, 256), case["image_sizes"])
    features = case["features"]
    if not case["training"]:
        with torch.no_grad():
            return {}, [], model.eval()(images, features)[0]
    targets = []
    for size, boxes, classes in zip(
        case["image_sizes"], case["boxes"], case["classes"], strict=True
    ):
        target = Instances(size)
        target.gt_boxes, target.gt_classes = Boxes(boxes), classes
        targets.append(target)
    found, losses = model.train()(images, features, targets)
    grads = torch.autograd.grad(sum(losses.values()), list(features.values()))
    return losses, list(grads), found


NAMES = [
    (name, seed, training) for name in CASES for seed in range(3) for training in (True, False)
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[Any, Any]]:
    """Every case with what the authors' code makes of it, in one program."""
    folder = tmp_path_factory.mktemp("oracle")
    cases = [make_case(CASES[name], seed, training) for name, seed, training in NAMES]
    torch.save(cases, folder / "cases.pt")
    words = ["-m", "tests.detic_ext.centernet_oracle", folder / "cases.pt", folder / "results.pt"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(folder / "results.pt")
    return dict(zip(NAMES, zip(cases, results, strict=True), strict=True))


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name[0]}-{name[1]}-{name[2]}")
def test_losses_gradients_and_proposals_are_those_of_the_authors(
    theirs: dict[Any, tuple[Any, Any]], name: tuple[str, int, bool]
) -> None:
    case, expected = theirs[name]
    losses, grads, found = ours(case)
    assert losses.keys() == expected["losses"].keys()
    for key, value in expected["losses"].items():
        torch.testing.assert_close(losses[key], value, rtol=2e-4, atol=1e-5)
    if losses:
        assert sum(float(value.detach()) > 0 for value in losses.values()) >= 2
    for grad, wanted in zip(grads, expected.get("gradients", ()), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-6)
    if name[0] == "classes and heat" and case["training"]:
        return  # theirs proposes nothing while such a detector learns
    for one, wanted in zip(found, expected["proposals"], strict=True):
        assert len(wanted["scores"]) > 5
        # theirs leaves peaks in the order of the levels
        order = wanted["scores"].argsort(descending=True, stable=True)
        scores, boxes = wanted["scores"][order], wanted["boxes"][order]
        torch.testing.assert_close(one.objectness_logits, scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.proposal_boxes.tensor, boxes, rtol=1e-4, atol=1e-2)
