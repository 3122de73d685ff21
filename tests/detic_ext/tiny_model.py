"""A Detic model small enough for unit tests, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

import detic_ext  # noqa: F401 - registers the model parts
from ext_common.config import load_config

NAMES = ("red square", "red disc", "blue square", "blue disc", "green star")


def tiny_config(*opts: Any) -> CfgNode:
    """R18 with a thin FPN, RPN and a cascade of three small heads over NAMES."""
    settings: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "CustomRCNN",
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.MASK_ON": True,
        "MODEL.VOCABULARY": ",".join(NAMES),
        "MODEL.TEXT_ENCODER.NAME": "hash",
        "MODEL.TEXT_ENCODER.DIM": 16,
        "MODEL.TEXT_ENCODER.TEMPLATES": "('{}',)",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": "['res2','res3','res4','res5']",
        "MODEL.FPN.IN_FEATURES": "['res2','res3','res4','res5']",
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ANCHOR_GENERATOR.SIZES": "[[16],[32],[64],[96],[128]]",
        "MODEL.RPN.IN_FEATURES": "['p2','p3','p4','p5','p6']",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.NAME": "DeticCascadeROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p2','p3','p4','p5']",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.USE_ZEROSHOT_CLS": True,
        "MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM": 16,
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
        "MODEL.ROI_BOX_HEAD.WS_NUM_PROPS": 8,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        "WITH_IMAGE_LABELS": True,
    }
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        settings[key] = value
    return load_config("", [str(word) for pair in settings.items() for word in pair])


C4_OPTS: tuple[Any, ...] = (
    "MODEL.MASK_ON", False,
    "MODEL.BACKBONE.NAME", "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH", 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.OUT_FEATURES", "['res4']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[16,32,64]]",
    "MODEL.RPN.IN_FEATURES", "['res4']",
    "MODEL.ROI_HEADS.NAME", "CustomRes5ROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", "['res4']",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4,
)  # fmt: skip
"""Turns :func:`tiny_config` into the OV-COCO kind: RPN and heads over one map."""

CENTERNET_OPTS: tuple[Any, ...] = (
    "MODEL.BACKBONE.NAME", "build_p67_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", "['res3','res4','res5']",
    "MODEL.FPN.IN_FEATURES", "['res3','res4','res5']",
    "MODEL.FPN.OUT_CHANNELS", 64,
    "MODEL.PROPOSAL_GENERATOR.NAME", "CenterNet",
    "MODEL.CENTERNET.ONLY_PROPOSAL", True,
    "MODEL.CENTERNET.WITH_AGN_HM", True,
    "MODEL.CENTERNET.INFERENCE_TH", 0.0001,
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", 40,
    "MODEL.CENTERNET.NUM_BOX_CONVS", 1,
    "MODEL.ROI_HEADS.IN_FEATURES", "['p3','p4','p5']",
)  # fmt: skip
"""Turns it into the CenterNet2 kind: CenterNet proposals over P3 to P7."""

CAPTION_OPTS: tuple[Any, ...] = (
    "MODEL.WITH_CAPTION", True,
    "MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX", True,
)  # fmt: skip
"""Lets it read captions."""


def tiny_model(*opts: Any, seed: int = 0) -> torch.nn.Module:
    """The model of :func:`tiny_config` with seeded weights."""
    torch.manual_seed(seed)
    return build_model(tiny_config(*opts))


def box_item(
    size: int = 64,
    boxes: Sequence[Sequence[float]] = ((8, 8, 40, 40),),
    classes: Sequence[int] = (0,),
) -> dict[str, Any]:
    """One picture with boxes and masks."""
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    if len(boxes):
        masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        instances.gt_masks = BitMasks(masks)
    return {
        "image": picture(size),
        "instances": instances,
        "ann_type": "box",
        "pos_category_ids": [],
        "dataset_source": 0,
        "height": size,
        "width": size,
    }


def label_item(labels: Sequence[int], size: int = 64) -> dict[str, Any]:
    """One picture with image labels."""
    return {
        "image": picture(size),
        "ann_type": "image",
        "pos_category_ids": list(labels),
        "dataset_source": 1,
        "height": size,
        "width": size,
    }


def caption_item(
    caption: str, labels: Sequence[int] | None = None, size: int = 64
) -> dict[str, Any]:
    """One picture with a caption, and with image labels where they are given."""
    item = label_item(labels or (), size) | {"captions": [caption], "ann_type": "caption"}
    return item if labels is None else item | {"ann_type": "captiontag"}


def losses_of(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Losses of a batch; what is drawn at random is the same every time."""
    torch.manual_seed(7)
    with EventStorage(0):
        result: dict[str, Tensor] = model(batch)
    return result


def picture(size: int) -> Tensor:
    """uint8 noise [3, size, size]."""
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
