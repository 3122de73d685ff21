"""Detectors with a frozen trunk that are small enough for unit tests."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import frozen_backbone_ext  # noqa: F401 - registers its parts
from ext_common.config import load_config
from ext_common.modeling.build import build_model

SETTINGS: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_STD": "[57.375, 57.12, 58.395]",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.OUT_FEATURES": "['res3','res4','res5']",
    "MODEL.FPN.IN_FEATURES": "['res3','res4','res5']",
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[32],[64],[128],[256]]",
    "MODEL.RPN.IN_FEATURES": "['p3','p4','p5','p6']",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": "['p3','p4','p5']",
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
    "MODEL.BACKBONE_FREEZE.ALLOW_RANDOM": True,
    "MODEL.BACKBONE_FREEZE.POLICY": "trunk",
}
NASFPN: dict[str, Any] = {
    "MODEL.BACKBONE.NAME": "build_pyramid_backbone",
    "MODEL.PYRAMID.NECK": "nasfpn",
    "MODEL.PYRAMID.WIDTH": 8,
    "MODEL.NASFPN.REPEATS": 1,
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[64],[128],[256],[512],[1024]]",
    "MODEL.RPN.IN_FEATURES": "['p3','p4','p5','p6','p7']",
    "MODEL.ROI_HEADS.IN_FEATURES": "['p3','p4','p5','p6','p7']",
}
"""On top of SETTINGS: NAS-FPN as neck."""


def frozen_config(changes: dict[str, Any] | None = None) -> CfgNode:
    """SETTINGS with changes."""
    settings = SETTINGS | (changes or {})
    return load_config("", [str(word) for pair in settings.items() for word in pair])


def frozen_model(changes: dict[str, Any] | None = None, *, seed: int = 0) -> Any:
    """The model of :func:`frozen_config`, with statistics that no norm starts with."""
    torch.manual_seed(seed)
    model = build_model(frozen_config(changes))
    trained_looking(model.backbone)
    return model


@torch.no_grad()
def trained_looking(network: nn.Module) -> None:
    """Give every batch norm weights and statistics as after training."""
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor = tensor + 0.1 * torch.randn_like(tensor)
        elif name.endswith("running_var"):
            tensor = tensor * (0.5 + torch.rand_like(tensor))
        state[name] = tensor
    network.load_state_dict(state)


def item(size: int = 64, *, masks: bool = False) -> dict[str, Any]:
    """One picture with one object."""
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 44.0]]))
    instances.gt_classes = torch.tensor([1])
    if masks:
        mask = torch.zeros(1, size, size, dtype=torch.bool)
        mask[0, 8:44, 8:40] = True
        instances.gt_masks = BitMasks(mask)
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size, "width": size}


def train_steps(model: nn.Module, steps: int = 2, **item_options: Any) -> list[Tensor]:
    """SGD with weight decay over what needs a gradient; the total loss of every step."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, weight_decay=0.1, momentum=0.9)
    totals = []
    for _ in range(steps):
        with EventStorage(0):
            losses = model([item(**item_options), item(**item_options)])
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.detach())
    return totals
