"""A training step with a frozen trunk, next to full fine-tuning (issue 7, cost; spec 8.2).

``ours`` and ``naive`` compute the same step: gradients and a trunk that is left out of the update,
and no graph through the trunk at all. What this may save at best follows from the multiply-adds
B of the trunk, D of the rest and dL of the laterals' input gradients:
``(3 D + B - dL) / (3 D + 3 B)``. ``python -m benchmarks.cases.frozen_step`` prints both ratios.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import frozen_backbone_ext  # noqa: F401 - registers its parts
from benchmarks.case import Case, Problem, Results, Variant
from ext_common.config import load_config
from ext_common.modeling.build import build_model
from frozen_backbone_ext.cost import step_cost

SETTINGS = {
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": "False",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.RESNETS.OUT_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.FPN.IN_FEATURES": "['res2','res3','res4','res5']",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[32],[64],[128],[256],[512]]",
    "MODEL.RPN.IN_FEATURES": "['p2','p3','p4','p5','p6']",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "1000",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": "['p2','p3','p4','p5']",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": "2",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "7",
    "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM": "True",
}
"""Faster R-CNN, R50-FPN, of detectron2's zoo (spec 8.4)."""

SMALL = {
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.FPN.OUT_CHANNELS": "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
}


@dataclass(frozen=True)
class _Step:
    model: nn.Module
    batch: list[dict[str, Any]]

    def run(self) -> Results:
        """Forward and backward; the gradient of the first lateral convolution."""
        torch.manual_seed(0)  # proposals are sampled
        self.model.zero_grad()
        with EventStorage(0):
            losses: dict[str, torch.Tensor] = self.model(self.batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        gradient = self.model.get_parameter("backbone.fpn_lateral5.weight").grad
        assert gradient is not None
        return {"loss": total.detach(), "gradient": gradient.clone()}


def build(device: torch.device, **options: Any) -> Problem:
    """The step in every way; the options are those of :func:`make_steps`."""
    return Problem({name: step.run for name, step in make_steps(device, **options).items()})


def make_steps(
    device: torch.device,
    *,
    size: int = 512,
    images: int = 1,
    changes: dict[str, str] | None = None,
    freeze_at: int | None = None,
) -> dict[str, _Step]:
    """The step with our freeze, and with the whole graph.

    Args:
        device: where.
        size: side of the pictures.
        images: in the batch.
        changes: config keys on top.
        freeze_at: also a step with detectron2's own freezing of so many stages.
    """
    settings = SETTINGS | (changes or {}) | {"MODEL.DEVICE": device.type}
    ways = {"ours": {"MODEL.BACKBONE_FREEZE.POLICY": "trunk"}, "naive": {}}
    if freeze_at is not None:
        ways["detectron2"] = {"MODEL.BACKBONE.FREEZE_AT": str(freeze_at)}
    batch = [_picture(size, device) for _ in range(images)]
    steps = {}
    for name, more in ways.items():
        pairs = [word for pair in (settings | more).items() for word in pair]
        torch.manual_seed(0)
        steps[name] = _Step(build_model(load_config("", pairs)).train(), batch)
    return steps


def _picture(size: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(size)
    instances = Instances((size, size))
    corner = torch.rand(8, 2, generator=generator) * size * 0.6
    side = (torch.rand(8, 2, generator=generator) * 0.3 + 0.08) * size
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
    instances.gt_classes = torch.arange(8)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    return {"image": image.to(device), "instances": instances, "height": size, "width": size}


CASE = Case(
    name="step_frozen",
    what="a training step of Faster R-CNN R50-FPN: frozen trunk (ours), fine-tuning, freeze_at 2",
    variants=(
        Variant("512 px", partial(build, freeze_at=2)),
        Variant("320 px, 2 images", partial(build, size=320, images=2, freeze_at=2)),
    ),
    tiny=Variant("tiny", partial(build, size=128, changes=SMALL, freeze_at=2)),
    tolerance=1e-5,
    most_repeats=3,
)


def main() -> None:
    """Print times of the first variant, their ratio, and the ratio of the law."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = make_steps(device, freeze_at=2)
    seconds = dict.fromkeys(steps, float("inf"))
    for _ in range(4):  # ways in turn: a busy machine is busy for all of them
        for name, step in steps.items():
            start = time.perf_counter()
            step.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    cost = step_cost(steps["ours"].model, steps["ours"].run)
    measured = seconds["ours"] / seconds["naive"]
    for name, value in seconds.items():
        print(f"{name:12} {value:8.3f} s  {value / seconds['naive']:.3f} of fine-tuning")
    print(
        f"law: {cost.ideal_ratio():.3f}; share of its saving: {cost.share_of_saving(measured):.2f}"
    )


if __name__ == "__main__":
    main()
