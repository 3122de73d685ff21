"""Pretraining settings that follow from others, or cannot work and are refused before building.

``regionclip_ext.config_checks`` does the same for detectors, with some of these checks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY, FINISH_CONFIG_REGISTRY
from regionclip_ext.data.pair_loader import stored_proposals
from regionclip_ext.data.pair_names import SAMPLER_NAME
from regionclip_ext.modeling.encoder_shapes import encoder_shape
from regionclip_ext.modeling.pretrain.concept_pools import ConceptPools
from regionclip_ext.modeling.pretrain.options import PretrainOptions
from regionclip_ext.modeling.pretrain.region_head import PretrainRes5ROIHeads
from regionclip_ext.modeling.pretrain.region_sources import REGION_TYPES
from regionclip_ext.modeling.regions.offline import offline_config

META_ARCHITECTURE = "PretrainFastRCNN"
_HEAD = PretrainRes5ROIHeads.__name__
_DEFAULT_SAMPLER = "TrainingSampler"  # of detectron2
_TOKENIZER = "openai_bpe"
_SCRATCH = "to train from scratch, set MODEL.CLIP.ALLOW_RANDOM_INIT True"


logger = logging.getLogger(__name__)


@FINISH_CONFIG_REGISTRY.register()
def finish_pretraining(cfg: CfgNode, training: bool) -> None:
    """Take the loader of pairs where the data are pairs: published files name no loader.

    Test sets, which files made from a detector's bring along, are left out: there is nothing to
    score before the weights are in a detector.

    Args:
        cfg: changed in place.
        training: otherwise test sets stay, for the message about them.
    """
    if cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
        return
    if cfg.DATASETS.FACTORY_TRAIN and cfg.DATALOADER.SAMPLER_TRAIN == _DEFAULT_SAMPLER:
        cfg.DATALOADER.SAMPLER_TRAIN = SAMPLER_NAME
    if training and cfg.DATASETS.TEST:
        named = ", ".join(cfg.DATASETS.TEST)
        logger.warning("DATASETS.TEST (%s) is not used: pretraining detects nothing", named)
        cfg.DATASETS.TEST = ()


@CONFIG_CHECK_REGISTRY.register()
def check_pretraining(cfg: CfgNode, training: bool) -> None:
    """Check what only pretraining reads.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    if cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
        return
    if not training:
        raise ConfigError(
            "a pretraining model detects nothing",
            where="MODEL.META_ARCHITECTURE",
            fix="give its checkpoint to a detector: configs/regionclip/zeroshot_RN50.yaml",
        )
    PretrainOptions.from_config(cfg)  # temperatures, number of regions
    _check_data(cfg)
    _check_encoders(cfg)
    _check_weights(cfg)
    if cfg.MODEL.CLIP.CONCEPT_POOL_EMB:
        _check_regions(cfg)
    ConceptPools.from_config(cfg)  # files, widths and numbers of concepts


def _check_data(cfg: CfgNode) -> None:
    if cfg.DATALOADER.SAMPLER_TRAIN != SAMPLER_NAME:
        raise ConfigError(
            f"{cfg.DATALOADER.SAMPLER_TRAIN} gives no captions",
            where="DATALOADER.SAMPLER_TRAIN",
            fix=f"set it to {SAMPLER_NAME}",
        )
    _check_augmentation(cfg)
    if cfg.INPUT.TEXT_TOKENIZER != _TOKENIZER:
        raise ConfigError(
            f"unknown tokenizer {cfg.INPUT.TEXT_TOKENIZER!r}",
            where="INPUT.TEXT_TOKENIZER",
            fix=f"{_TOKENIZER}, the one of CLIP's text encoders",
        )
    if cfg.INPUT.FORMAT != "RGB":
        raise ConfigError(
            f"{cfg.INPUT.FORMAT} pictures; CLIP and the loader of pairs use RGB",
            where="INPUT.FORMAT",
            fix="RGB; the offline RPN gets its own format by its own file",
        )
    clip = cfg.MODEL.CLIP
    if clip.PRETRAIN_IMG_TXT_LEVEL and not clip.PRETRAIN_ONLY_EOT:
        raise ConfigError(
            "the image-text loss compares one feature per caption",
            where="MODEL.CLIP.PRETRAIN_ONLY_EOT",
            fix="set it True, as all published files do",
        )


def _check_augmentation(cfg: CfgNode) -> None:
    if len(cfg.AUG.TRAIN.IMAGE_SIZE) != 1:
        raise ConfigError(
            f"a random resized crop to {list(cfg.AUG.TRAIN.IMAGE_SIZE)} is not supported",
            where="AUG.TRAIN.IMAGE_SIZE",
            fix="give the shorter side alone, such as [800], and AUG.TRAIN.MAX_SIZE 1333",
        )
    timm = cfg.AUG.TIMM_AUG
    asked = {
        "AUG.USE_TIMM": cfg.AUG.USE_TIMM,
        "AUG.TIMM_AUG.USE_LOADER": timm.USE_LOADER,
        "AUG.TIMM_AUG.USE_TRANSFORM": timm.USE_TRANSFORM,
    }
    for key, value in asked.items():
        if value:
            raise ConfigError(
                f"{value}, but timm's augmentations are not supported",
                where=key,
                fix="set it False, as all published files do",
            )


def _check_encoders(cfg: CfgNode) -> None:
    """Sizes and the head of student and teacher; without a pool there is no teacher."""
    if cfg.MODEL.ROI_HEADS.NAME != _HEAD:
        raise ConfigError(
            f"{cfg.MODEL.ROI_HEADS.NAME} cannot pretrain",
            where="MODEL.ROI_HEADS.NAME",
            fix=f"set it to {_HEAD}",
        )
    check_pooler(cfg)
    if cfg.MODEL.CLIP.CONCEPT_POOL_EMB:
        check_pooler(cfg, teacher=True)


def _check_weights(cfg: CfgNode) -> None:
    """What is frozen must come from somewhere: random, it teaches noise without an error."""
    clip, weights = cfg.MODEL.CLIP, cfg.MODEL.WEIGHTS
    check_files(cfg, "ENCODER_WEIGHTS", "TEACHER_ENCODER_WEIGHTS")
    if not (clip.ALLOW_RANDOM_INIT or weights or clip.ENCODER_WEIGHTS):
        raise ConfigError(
            "neither names a file: student, teacher and text encoder would be random",
            where="MODEL.CLIP.ENCODER_WEIGHTS, MODEL.WEIGHTS",
            fix="ENCODER_WEIGHTS: CLIP's file, such as models/RN50.pt; or WEIGHTS: that file or a "
            f"RegionCLIP checkpoint; {_SCRATCH}",
        )
    if not clip.CONCEPT_POOL_EMB or clip.CROP_REGION_TYPE != "RPN":
        return
    check_files(cfg, "BB_RPN_WEIGHTS")
    if not (clip.ALLOW_RANDOM_INIT or weights or clip.BB_RPN_WEIGHTS):
        raise ConfigError(
            "neither names a file: the RPN that gives the regions would be random",
            where="MODEL.CLIP.BB_RPN_WEIGHTS, MODEL.WEIGHTS",
            fix="BB_RPN_WEIGHTS: checkpoint of the detector of MODEL.CLIP.OFFLINE_RPN_CONFIG, such as "
            f"models/rpn_lvis_866.pth; or WEIGHTS: a RegionCLIP checkpoint with it; {_SCRATCH}",
        )


def check_files(cfg: CfgNode, *keys: str) -> None:
    """Files that keys of ``MODEL.CLIP`` name must exist.

    Raises:
        ConfigError: one does not.
    """
    for key in keys:
        name = cfg.MODEL.CLIP[key]
        if name and not Path(name).expanduser().is_file():
            raise ConfigError(
                f"no such file: {name}",
                where=f"MODEL.CLIP.{key}",
                fix="paths are relative to the folder that the command is run in",
            )


def check_pooler(cfg: CfgNode, *, teacher: bool = False) -> None:
    """Regions are pooled to the size that the encoder's attention pool takes (pitfall 11.15).

    Args:
        cfg: complete configuration.
        teacher: check the pretraining teacher instead of the model's own encoder.

    Raises:
        ConfigError: another size, or an unknown encoder.
    """
    shape = encoder_shape(cfg, teacher=teacher)
    size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    where = "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"
    if teacher:
        size = cfg.MODEL.CLIP.TEACHER_POOLER_RESOLUTION
        where = "MODEL.CLIP.TEACHER_POOLER_RESOLUTION"
    if size != shape.roi_side:
        raise ConfigError(
            f"{size} x {size} regions give the attention pool {(size // 2) ** 2 + 1} tokens, "
            f"it has positions for {shape.pool_side**2 + 1}",
            where=where,
            fix=f"{shape.roi_side} for this encoder",
        )


def _check_regions(cfg: CfgNode) -> None:
    clip = cfg.MODEL.CLIP
    if clip.CROP_REGION_TYPE not in REGION_TYPES:
        raise ConfigError(
            f"{clip.CROP_REGION_TYPE!r} are no regions for pretraining",
            where="MODEL.CLIP.CROP_REGION_TYPE",
            fix=f"one of {', '.join(REGION_TYPES)}",
        )
    if clip.CONCEPT_THRES is None:
        raise ConfigError(
            "no confidence threshold for pseudo labels",
            where="MODEL.CLIP.CONCEPT_THRES",
            fix="0.1 is the published value",
        )
    if clip.CROP_REGION_TYPE == "RPN":
        branch = offline_config(cfg, top_k=clip.PRETRAIN_RPN_REGIONS)
        check_rpn_pixels(branch, str(clip.OFFLINE_RPN_CONFIG))
    if clip.CROP_REGION_TYPE == "FILE" and clip.PROPOSAL_FILE:
        stored_proposals(cfg)


def check_rpn_pixels(branch: CfgNode, where: str) -> None:
    """Channel order, mean and deviation of an offline detector must tell one story.

    The original flips RGB to BGR for every offline detector. Here the detector's own file decides,
    so a file that says RGB over means in the order blue, green, red (or the reverse), or means from
    0 to 1 over deviations for 0 to 255, would silently give poor proposals.

    Args:
        branch: configuration of the offline detector.
        where: its file.

    Raises:
        ConfigError: the pixel format contradicts itself.
    """
    mean, std = list(branch.MODEL.PIXEL_MEAN), list(branch.MODEL.PIXEL_STD)
    name = branch.INPUT.FORMAT
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(
            f"PIXEL_MEAN {mean} and PIXEL_STD {std} are not three channels each",
            where=where,
            fix="the offline RPN needs RGB or BGR pictures",
        )
    # photographs: red is the brightest channel, blue the darkest, in all published statistics
    written = (
        "BGR" if mean[0] < mean[1] < mean[2] else "RGB" if mean[0] > mean[1] > mean[2] else name
    )
    if name not in ("RGB", "BGR") or name != written:
        raise ConfigError(
            f"INPUT.FORMAT is {name}, and PIXEL_MEAN {mean} is in the order {written}",
            where=where,
            fix="give the format and the mean that the offline RPN was trained with",
        )
    if sum(mean) < 3 and max(std) > 3:
        raise ConfigError(
            f"PIXEL_MEAN {mean} is for values from 0 to 1, PIXEL_STD {std} for 0 to 255",
            where=where,
            fix="give the values that the offline RPN was trained with",
        )
