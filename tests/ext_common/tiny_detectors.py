"""Detectors small enough for tests: plain detectron2 ones, and one that takes a vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ext_common.config import get_config
from ext_common.text_encoder import HashTextEncoder
from ext_common.vocabulary import Vocabulary

CLASSES = ("cat", "dog", "remote control")
DATASET = "tiny_three_classes"
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
DIM = 64


def register_three_classes() -> str:
    """A dataset without pictures, whose classes have names."""
    if DATASET not in DatasetCatalog:
        DatasetCatalog.register(DATASET, list)
        MetadataCatalog.get(DATASET).thing_classes = list(CLASSES)
    return DATASET


def tiny_config(architecture: str = "GeneralizedRCNN", *, masks: bool = False) -> CfgNode:
    """A plain Faster / Mask R-CNN or RetinaNet with a trunk of few channels."""
    cfg = get_config()
    retina = architecture == "RetinaNet"
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.PIXEL_STD = [1_000.0] * 3  # random trunks enlarge: keeps the scores off 0 and 1
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    if retina:
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50  # detectron2 allows no small 18-layer one
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [96], [128]][: 5 if retina else 3]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.TEST.DETECTIONS_PER_IMAGE = 6
    cfg.DATASETS.TEST = (register_three_classes(),)
    return cfg


def save_random_weights(cfg: CfgNode, folder: Path) -> str:
    """Weights for ``cfg``, the same each time, in a file; ``cfg`` then names it."""
    torch.manual_seed(7)
    path = folder / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return str(path)


@META_ARCH_REGISTRY.register()
class ColorDetector(nn.Module):
    """Finds one object per picture, the whole of it, and tells its colour.

    The picture's feature is the hash embedding of the name of its main colour, so a vocabulary of
    any names with colour words works. Without a classifier it looks for its own classes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.encoder = HashTextEncoder(DIM)
        self.vocabulary = Vocabulary.from_names(["green", "red"])
        self.vocabulary = self.vocabulary.with_embeddings(
            self.encoder.encode(self.vocabulary.names), self.encoder.encoder_id
        )
        self.order = cfg.INPUT.FORMAT

    def prepare_vocabulary(self, vocabulary: Vocabulary) -> Tensor:
        emb_CD = vocabulary.embeddings_CD
        assert emb_CD is not None
        return torch.cat([emb_CD.T, torch.zeros(DIM, 1)], dim=1)

    def forward(
        self, batched_inputs: list[dict[str, Any]], classifier: Tensor | None = None
    ) -> list[dict[str, Instances]]:
        if classifier is None:
            classifier = self.prepare_vocabulary(self.vocabulary)
        outputs = []
        for item in batched_inputs:
            means = item["image"].float().mean(dim=(1, 2))
            name = tuple(COLORS)[int((means if self.order == "RGB" else means.flip(0)).argmax())]
            scores = (self.encoder.encode([name]) @ classifier)[0, :-1]
            found = Instances((item["height"], item["width"]))
            box = [0.0, 0.0, float(item["width"]), float(item["height"])]
            found.pred_boxes = Boxes(torch.tensor([box]))
            found.scores = scores.max()[None].clamp(0, 1)
            found.pred_classes = scores.argmax()[None]
            outputs.append({"instances": found})
        return outputs


def color_config() -> CfgNode:
    """Configuration of :class:`ColorDetector`."""
    cfg = tiny_config("ColorDetector")
    cfg.MODEL.TEXT_ENCODER.NAME = "hash"
    cfg.MODEL.TEXT_ENCODER.DIM = DIM
    cfg.MODEL.TEXT_ENCODER.TEMPLATES = ["{}"]
    return cfg
