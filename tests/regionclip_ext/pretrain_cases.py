"""Tiny pretraining models: of the golden files, and one of random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

import regionclip_ext.config
import regionclip_ext.data.pair_loader
import regionclip_ext.modeling.pretrain.meta_arch  # noqa: F401 - registers
from ext_common.config import get_config

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def offline_yaml(*, stem: int = 8, res2: int = 8, width: int = 4, pre_nms: int = 300) -> str:
    """A ResNet-50-C4 detector of these sizes."""
    return f"""\
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {{NAME: build_resnet_backbone}}
  RESNETS:
    DEPTH: 50
    STEM_OUT_CHANNELS: {stem}
    RES2_OUT_CHANNELS: {res2}
    WIDTH_PER_GROUP: {width}
    STRIDE_IN_1X1: True
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  ANCHOR_GENERATOR: {{SIZES: [[32, 64, 128, 256, 512]]}}
  RPN:
    PRE_NMS_TOPK_TEST: {pre_nms}
INPUT: {{FORMAT: BGR}}
"""


def golden_config(arrays: Mapping[str, np.ndarray], folder: Path) -> CfgNode:
    """A configuration for the model of a golden file; pools and RPN file are written to a folder."""
    meta = json.loads(str(arrays["meta_json"]))
    save_pools(arrays, folder)
    offline = folder / "offline.yaml"
    offline.write_text(
        offline_yaml(
            stem=len(arrays["w/offline_backbone.stem.conv1.weight"]),
            res2=len(arrays["w/offline_backbone.res2.0.conv3.weight"]),
            width=len(arrays["w/offline_backbone.res2.0.conv1.weight"]),
            pre_nms=meta["rpn_pre"],
        )
    )
    return tiny_config(
        folder,
        student=meta["student"],
        teacher=meta["teacher"],
        lang=meta["lang"],
        options=[
            ("CLIP.CROP_REGION_TYPE", "RPN"),
            ("CLIP.OFFLINE_RPN_CONFIG", str(offline)),
            ("CLIP.OFFLINE_RPN_NMS_THRESH", meta["rpn_nms"]),
            ("CLIP.PRETRAIN_RPN_REGIONS", meta["rpn_post"]),
            ("CLIP.CLSS_TEMP", meta["temp"]),
            ("CLIP.CONCEPT_THRES", meta["concept_thres"]),
            (
                "CLIP.TEACHER_CONCEPT_POOL_EMB",
                str(folder / "teacher.pth") if "teacher_concept_emb" in arrays else None,
            ),
        ],
    )


def save_pools(arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    for key, name in (("concept_emb", "pool.pth"), ("teacher_concept_emb", "teacher.pth")):
        if key in arrays:
            torch.save(torch.from_numpy(np.asarray(arrays[key])), folder / name)


def tiny_config(
    folder: Path,
    *,
    student: Mapping[str, Any],
    teacher: Mapping[str, Any],
    lang: Mapping[str, Any],
    options: Sequence[tuple[str, Any]] = (),
) -> CfgNode:
    """Encoders of the given sizes; ``options`` are keys below MODEL."""
    cfg = get_config()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.META_ARCHITECTURE = "PretrainFastRCNN"
    model.BACKBONE.NAME = "build_clip_resnet_backbone"
    model.BACKBONE.FREEZE_AT = 2
    model.RESNETS.OUT_FEATURES = ["res4"]
    model.ROI_HEADS.NAME = "PretrainRes5ROIHeads"
    model.PIXEL_MEAN, model.PIXEL_STD = CLIP_MEAN, CLIP_STD
    model.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = student["res"] // 16
    clip = model.CLIP
    clip.TEACHER_POOLER_RESOLUTION = teacher["res"] // 16
    for prefix, sizes in (("", student), ("TEACHER_", teacher)):
        clip[f"{prefix}IMAGE_ENCODER"] = "custom"
        node = clip[f"{prefix}CUSTOM_ENCODER"]
        node.WIDTH, node.LAYERS = sizes["width"], list(sizes["layers"])
        node.HEADS = sizes["width"] * 32 // 64
        node.EMBED_DIM, node.RESOLUTION = sizes["dim"], sizes["res"]
    text = clip.LANG_ENCODER
    text.WIDTH, text.HEADS, text.LAYERS = lang["width"], lang["heads"], lang["layers"]
    text.CONTEXT, text.VOCABULARY = lang["context"], lang["vocab"]
    clip.PRETRAIN_ONLY_EOT = True
    clip.CONCEPT_POOL_EMB = str(folder / "pool.pth")
    cfg.INPUT.FORMAT = "RGB"
    for key, value in options:
        node = model
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return cfg


def golden_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """State dict entries of a golden file."""
    return {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}


STUDENT = {"width": 4, "layers": [1, 1, 1, 1], "res": 64, "dim": 16}
TEACHER = {"width": 8, "layers": [1, 1, 1, 1], "res": 96, "dim": 24}
LANG = {"context": 77, "vocab": 49408, "width": 16, "heads": 2, "layers": 1}
CONCEPTS = 12


def random_config(folder: Path, options: Sequence[tuple[str, Any]] = ()) -> CfgNode:
    """A configuration that validates: a wider teacher, random regions, pools of random numbers."""
    generator = torch.Generator().manual_seed(5)
    for name, width in (("pool.pth", STUDENT["dim"]), ("teacher.pth", TEACHER["dim"])):
        torch.save(torch.randn(CONCEPTS, width, generator=generator), folder / name)
    cfg = tiny_config(
        folder,
        student=STUDENT,
        teacher=TEACHER,
        lang=LANG,
        options=[
            ("CLIP.CROP_REGION_TYPE", "RANDOM"),
            ("CLIP.PRETRAIN_SAMPLE_REGIONS", 6),
            ("CLIP.CONCEPT_THRES", 0.1),
            ("CLIP.ALLOW_RANDOM_INIT", True),
            ("CLIP.TEACHER_CONCEPT_POOL_EMB", str(folder / "teacher.pth")),
            *options,
        ],
    )
    cfg.DATALOADER.SAMPLER_TRAIN = "ImageTextPairs"
    cfg.AUG.TRAIN.IMAGE_SIZE, cfg.AUG.TRAIN.MAX_SIZE = [48], 96
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("pairs",), ()
    cfg.DATASETS.FACTORY_TRAIN = ("CLIPImgTxtPairTSVDataset",)
    cfg.DATASETS.PATH_TRAIN = (str(folder / "tsv"),)
    cfg.FIND_UNUSED_PARAM = False
    cfg.SEED = 3
    return cfg
