"""The authors' CenterNet of the package index, run as a program of its own.

``python -m tests.detic_ext.centernet_oracle INPUT OUTPUT``: it registers parts under the names that
ours have, so it cannot be imported beside them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from centernet.config import add_centernet_config
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Losses and proposals of one case; see ``test_centernet_oracle.Case``."""
    cfg = get_cfg()
    add_centernet_config(cfg)
    cfg.merge_from_list([str(word) for pair in case["settings"].items() for word in pair])
    features = case["features"]
    strides = cfg.MODEL.CENTERNET.FPN_STRIDES
    shapes = {
        name: ShapeSpec(channels=maps.shape[1], stride=stride)
        for (name, maps), stride in zip(features.items(), strides, strict=True)
    }
    generator = build_proposal_generator(cfg, shapes)
    generator.load_state_dict(case["weights"])
    sizes = [tuple(size) for size in case["image_sizes"]]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images = ImageList(torch.zeros(len(sizes), 3, height, width), sizes)
    if not case["training"]:
        with torch.no_grad():
            found, _ = generator.eval()(images, features, None)
        return {"losses": {}, "proposals": [_plain(one) for one in found]}
    targets = []
    for size, boxes, classes in zip(sizes, case["boxes"], case["classes"], strict=True):
        target = Instances(size)
        target.gt_boxes, target.gt_classes = Boxes(boxes), classes
        targets.append(target)
    found, losses = generator.train()(images, features, targets)
    names = sorted(losses)
    inputs = list(features.values())
    grads = torch.autograd.grad(sum(losses[name] for name in names), inputs)
    return {
        "losses": {name: losses[name].detach() for name in names},
        "gradients": list(grads),
        "proposals": [_plain(one) for one in found],
    }


def _plain(found: Instances) -> dict[str, torch.Tensor]:
    proposals = found.has("proposal_boxes")
    boxes = found.proposal_boxes if proposals else found.pred_boxes
    scores = found.objectness_logits if proposals else found.scores
    plain = {"boxes": boxes.tensor.detach(), "scores": scores.detach()}
    return plain if proposals else {**plain, "classes": found.pred_classes}


if __name__ == "__main__":
    source, target = sys.argv[1:]
    torch.save([run_case(case) for case in torch.load(source)], target)
