"""Combinations of RegionCLIP's keys that cannot work, refused before anything is built."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY
from regionclip_ext.evaluation.datasets import LVIS_BASE
from regionclip_ext.modeling.encoder_shapes import encoder_shape
from regionclip_ext.modeling.pretrain.config_checks import (
    check_files,
    check_pooler,
    check_rpn_pixels,
)
from regionclip_ext.modeling.regions.offline import offline_config
from regionclip_ext.modeling.soft_nms import SoftNMSOptions

DETECTOR = "CLIPFastRCNN"
_REGIONS = ("GT", "RPN")
_REGION_KEY = "MODEL.CLIP.CROP_REGION_TYPE"
_LVIS, _LVIS_BASE_CLASSES = "lvis_v1_train", 866
# CLIP's, times 255
_MEAN_255 = [122.7709383, 116.7460125, 104.09373615]
_STD_255 = [68.5005327, 66.6321579, 70.32316305]


@CONFIG_CHECK_REGISTRY.register()
def check_regionclip(cfg: CfgNode, training: bool) -> None:
    """Check the detectors' keys; pretraining has checks of its own.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    _check_plain_pixels(cfg)
    if cfg.MODEL.META_ARCHITECTURE != DETECTOR:
        return
    _check_encoder(cfg)
    _check_regions(cfg)
    _check_inference(cfg)
    _check_class_specific_parts(cfg)
    if training:
        _check_training(cfg)


def _check_plain_pixels(cfg: CfgNode) -> None:
    """detectron2's own model subtracts and divides, and does nothing else to values up to 255."""
    model = cfg.MODEL
    clip = model.BACKBONE.NAME.startswith("build_clip_resnet_")
    if model.META_ARCHITECTURE == "GeneralizedRCNN" and clip and sum(model.PIXEL_MEAN) < 3:
        raise ConfigError(
            f"PIXEL_MEAN {list(model.PIXEL_MEAN)} is for values from 0 to 1; GeneralizedRCNN gets "
            "them from 0 to 255",
            where="MODEL.PIXEL_MEAN",
            fix=f"set it to {_MEAN_255}, and MODEL.PIXEL_STD to {_STD_255}",
        )


def _check_encoder(cfg: CfgNode) -> None:
    shape, clip = encoder_shape(cfg), cfg.MODEL.CLIP
    if not clip.CLSS_TEMP > 0:
        raise ConfigError(
            f"temperature {clip.CLSS_TEMP}", where="MODEL.CLIP.CLSS_TEMP", fix="above 0"
        )
    if not clip.USE_TEXT_EMB_CLASSIFIER:
        return
    if cfg.MODEL.BACKBONE.NAME == "build_clip_resnet_backbone":
        check_pooler(cfg)
    if shape.embed_dim != clip.TEXT_EMB_DIM:
        raise ConfigError(
            f"the image encoder embeds in {shape.embed_dim} dimensions, "
            f"MODEL.CLIP.TEXT_EMB_DIM is {clip.TEXT_EMB_DIM}",
            where="MODEL.CLIP.TEXT_EMB_DIM",
            fix=f"set it to {shape.embed_dim}, or choose another encoder (MODEL.RESNETS.DEPTH: 50, "
            "101, 200 for RN50x4)",
        )


def _check_regions(cfg: CfgNode) -> None:
    clip = cfg.MODEL.CLIP
    if clip.CROP_REGION_TYPE not in _REGIONS:
        raise ConfigError(
            f"unknown kind of regions {clip.CROP_REGION_TYPE!r} for {DETECTOR}",
            where=_REGION_KEY,
            fix=f"one of {', '.join(_REGIONS)}",
        )
    if clip.CROP_REGION_TYPE == "RPN":
        check_rpn_pixels(offline_config(cfg), str(clip.OFFLINE_RPN_CONFIG))
        check_files(cfg, "BB_RPN_WEIGHTS")
    check_files(cfg, "ENCODER_WEIGHTS")


def _check_inference(cfg: CfgNode) -> None:
    clip, heads = cfg.MODEL.CLIP, cfg.MODEL.ROI_HEADS
    if clip.CROP_REGION_TYPE == "GT" and clip.MULTIPLY_RPN_SCORE:
        raise ConfigError(
            "ground-truth boxes have no objectness to multiply with",
            where="MODEL.CLIP.MULTIPLY_RPN_SCORE",
            fix="set it False",
        )
    if heads.SOFT_NMS_ENABLED:
        SoftNMSOptions(method=heads.SOFT_NMS_METHOD)
        if not heads.SOFT_NMS_SIGMA > 0:
            raise ConfigError(
                f"sigma {heads.SOFT_NMS_SIGMA}",
                where="MODEL.ROI_HEADS.SOFT_NMS_SIGMA",
                fix="above 0",
            )


def _check_class_specific_parts(cfg: CfgNode) -> None:
    """Other classes at test than in training: boxes and masks must not depend on the class."""
    if not (cfg.MODEL.CLIP.OPENSET_TEST_TEXT_EMB_PATH or cfg.MODEL.VOCABULARY):
        return
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG and not cfg.MODEL.CLIP.NO_BOX_DELTA:
        raise ConfigError(
            "boxes per class cannot serve other classes at test",
            where="MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
            fix="set it True",
        )
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise ConfigError(
            "masks per class cannot serve other classes at test",
            where="MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
            fix="set it True",
        )


def _check_lvis_base(cfg: CfgNode) -> None:
    """The authors' code takes the rare classes out of a set that they still call lvis_v1_train."""
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if _LVIS in cfg.DATASETS.TRAIN and classes == _LVIS_BASE_CLASSES:
        raise ConfigError(
            f"{_LVIS} has 1203 classes, and MODEL.ROI_HEADS.NUM_CLASSES is {classes}: those that are "
            "not rare",
            where="DATASETS.TRAIN",
            fix=f"set it {LVIS_BASE} (prepare_data.py regionclip-splits writes it), or train all "
            f"classes of {_LVIS}_fullysup",
        )


def _check_training(cfg: CfgNode) -> None:
    clip = cfg.MODEL.CLIP
    _check_lvis_base(cfg)
    if clip.USE_TEXT_EMB_CLASSIFIER and not (clip.TEXT_EMB_PATH or cfg.MODEL.VOCABULARY):
        raise ConfigError(
            "no class embeddings to train with",
            where="MODEL.CLIP.TEXT_EMB_PATH",
            fix="name the file of the training classes, or set MODEL.VOCABULARY dataset:NAME",
        )
    if clip.FOCAL_SCALED_LOSS is not None and clip.FOCAL_SCALED_LOSS < 0:
        raise ConfigError(
            f"focal exponent {clip.FOCAL_SCALED_LOSS}",
            where="MODEL.CLIP.FOCAL_SCALED_LOSS",
            fix="0 or above; null for none",
        )
    weight = clip.BG_CLS_LOSS_WEIGHT
    if weight is not None and weight < 0:
        raise ConfigError(
            f"background weight {weight}", where="MODEL.CLIP.BG_CLS_LOSS_WEIGHT", fix="0 or above"
        )
