"""A training step of one detector with the trunk trained, half frozen, badly frozen and frozen.

All ways have the same weights and the same pictures. A step is forward, backward and SGD with
momentum; its learning rate is 0, so that every call computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from benchmarks.case import Results
from ext_common.config import load_config
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from frozen_backbone_ext.modeling.trunk import find_trunk

Settings = dict[str, str]

ZOO: Settings = {
    "MODEL.MASK_ON": "False",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
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
}
"""Faster R-CNN, R50-FPN, of detectron2's zoo (spec 8.4); its norms are frozen in every way."""

SMALL: Settings = {
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.FPN.OUT_CHANNELS": "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
}
"""On top of ZOO: for tests."""

_ALWAYS: Settings = {
    "MODEL.WEIGHTS": "",
    "MODEL.TIMM.PRETRAINED": "False",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.BACKBONE_FREEZE.POLICY": "",
    "MODEL.BACKBONE_FREEZE.WEIGHTS": "",
    "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM": "True",
}
_SYNC = {"MODEL.DETECTOR_PARTS.NORM": "BN"}  # one process has nobody to exchange statistics with
_TRUNK: Settings = {"MODEL.BACKBONE_FREEZE.POLICY": "trunk"}
_FOLDED: Settings = {**_TRUNK, "MODEL.BACKBONE_FREEZE.FOLD_BN": "True"}


@dataclass(frozen=True)
class Way:
    """How a trunk is treated.

    Args:
        what: for tables.
        settings: config keys.
        stop_gradients: set ``requires_grad`` of the trunk's weights to False, and nothing else.
        skip_in_optimizer: leave the trunk out of the optimizer, and nothing else.
    """

    what: str
    settings: Settings = field(default_factory=dict)
    stop_gradients: bool = False
    skip_in_optimizer: bool = False


WAYS = {
    "ours": Way("frozen (ours)", _TRUNK),
    "naive": Way("full fine-tuning"),
    "freeze_at_2": Way(
        "detectron2 FREEZE_AT 2",
        {"MODEL.BACKBONE.FREEZE_AT": "2", "MODEL.TIMM.FREEZE_AT": "2"},
    ),
    "optimizer": Way("left out of the optimizer only", skip_in_optimizer=True),
    "requires_grad": Way("requires_grad=False only", stop_gradients=True),
    "folded": Way("frozen (ours), norms folded", _FOLDED),
}
FAST = {
    "fast": Way(
        "frozen (ours), folded, bf16, channels last",
        {
            **_FOLDED,
            "MODEL.BACKBONE_FREEZE.DTYPE": "bf16",
            "MODEL.BACKBONE_FREEZE.CHANNELS_LAST": "True",
        },
    )
}
FAST["compiled"] = Way(
    "the same, compiled", {**FAST["fast"].settings, "MODEL.BACKBONE_FREEZE.COMPILE": "True"}
)
"""For a GPU, on top of WAYS."""


@dataclass(frozen=True)
class FrozenStep:
    """One model with its optimizer.

    Args:
        model: in training mode.
        batch: pictures with objects.
        optimizer: with learning rate 0.
        mixed: compute under bfloat16 autocast.
    """

    model: nn.Module
    batch: list[dict[str, Any]]
    optimizer: torch.optim.Optimizer
    mixed: bool = False

    def run(self) -> Results:
        """A step; the loss and the gradient of the first trained convolution outside the trunk."""
        self.optimizer.zero_grad()
        self._have_momentum()
        total = self.forward()
        total.backward()
        self.optimizer.step()
        gradient = self._watched.grad
        assert gradient is not None
        return {"loss": total.detach(), "gradient": gradient.clone()}

    def forward(self) -> Tensor:
        """The sum of the losses."""
        return torch.stack([loss.float() for loss in self.losses().values()]).sum()

    def losses(self) -> dict[str, Tensor]:
        """Every loss of the model."""
        torch.manual_seed(0)  # proposals are sampled
        kind = self.batch[0]["image"].device.type
        with EventStorage(0), torch.autocast(kind, torch.bfloat16, enabled=self.mixed):
            found: dict[str, Tensor] = self.model(self.batch)
        return found

    def trunk(self) -> Callable[[], Any]:
        """The trunk's forward pass alone, on the same pictures, as in the step."""
        network = find_trunk(self.model)[1]
        model: Any = self.model
        images_NCHW = model.preprocess_image(self.batch).tensor

        def forward() -> Any:
            with torch.autocast(images_NCHW.device.type, torch.bfloat16, enabled=self.mixed):
                return network(images_NCHW)

        return forward

    def _have_momentum(self) -> None:
        """The buffers that the first step would make at its end: a step's memory includes them."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter not in self.optimizer.state:
                    buffer = parameter.detach().clone().zero_()
                    self.optimizer.state[parameter]["momentum_buffer"] = buffer

    @cached_property
    def _watched(self) -> nn.Parameter:
        inside = {id(parameter) for parameter in find_trunk(self.model)[1].parameters()}
        backbone: Any = self.model.get_submodule("backbone")
        return next(
            p
            for p in backbone.parameters()
            if id(p) not in inside and p.ndim == 4  # a kernel
        )


def make_steps(
    device: torch.device,
    *,
    ways: Mapping[str, Way] | None = None,
    config_file: str | Path = "",
    changes: Settings | None = None,
    size: int = 512,
    images: int = 1,
    mixed: bool = False,
) -> dict[str, FrozenStep]:
    """The step in every way.

    Args:
        device: where.
        ways: of :data:`WAYS` and :data:`FAST`; None = WAYS.
        config_file: of the detector; empty = :data:`ZOO`.
        changes: config keys on top.
        size: side of the pictures.
        images: in the batch.
        mixed: compute under bfloat16 autocast.
    """
    register_all()
    settings = (_SYNC if config_file else ZOO) | _ALWAYS | (changes or {})
    steps = {}
    for name, way in (WAYS if ways is None else ways).items():
        pairs = settings | way.settings | {"MODEL.DEVICE": device.type}
        cfg = load_config(config_file, [word for pair in pairs.items() for word in pair])
        torch.manual_seed(0)
        model = build_model(cfg).train()
        trunk = find_trunk(model)[1]
        if way.stop_gradients:
            trunk.requires_grad_(False)
        left_out = {id(p) for p in trunk.parameters()} if way.skip_in_optimizer else set()
        trained = [p for p in model.parameters() if p.requires_grad and id(p) not in left_out]
        optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9)
        batch = [picture(size, device, masks=cfg.MODEL.MASK_ON) for _ in range(images)]
        steps[name] = FrozenStep(model, batch, optimizer, mixed)
    return steps


def picture(size: int, device: torch.device, *, masks: bool = False) -> dict[str, Any]:
    """A square of noise with eight objects."""
    generator = torch.Generator().manual_seed(size)
    instances = Instances((size, size))
    corner_N2 = torch.rand(8, 2, generator=generator) * size * 0.6
    side_N2 = (torch.rand(8, 2, generator=generator) * 0.3 + 0.08) * size
    boxes_N4 = torch.cat([corner_N2, corner_N2 + side_N2], dim=1)
    instances.gt_boxes = Boxes(boxes_N4)
    instances.gt_classes = torch.arange(8)
    if masks:
        masks_NHW = torch.zeros(8, size, size, dtype=torch.bool)
        for mask_HW, (x1, y1, x2, y2) in zip(masks_NHW, boxes_N4.long().tolist(), strict=True):
            mask_HW[y1:y2, x1:x2] = True
        instances.gt_masks = BitMasks(masks_NHW)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)
    return {"image": image.to(device), "instances": instances, "height": size, "width": size}
