"""Pretraining settings that cannot work, refused before anything is built.

Encoders, kinds of regions and files are checked by ``regionclip_ext.config_checks``.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY
from regionclip_ext.data.pair_loader import stored_proposals
from regionclip_ext.data.pair_names import SAMPLER_NAME
from regionclip_ext.modeling.pretrain.concept_pools import ConceptPools
from regionclip_ext.modeling.pretrain.options import PretrainOptions
from regionclip_ext.modeling.regions.offline import offline_config

META_ARCHITECTURE = "PretrainFastRCNN"


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
    if len(cfg.AUG.TRAIN.IMAGE_SIZE) != 1:
        raise ConfigError(
            f"a random resized crop to {list(cfg.AUG.TRAIN.IMAGE_SIZE)} is not supported",
            where="AUG.TRAIN.IMAGE_SIZE",
            fix="give the shorter side alone, such as [800], and AUG.TRAIN.MAX_SIZE 1333",
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


def _check_regions(cfg: CfgNode) -> None:
    clip = cfg.MODEL.CLIP
    if clip.CONCEPT_THRES is None:
        raise ConfigError(
            "no confidence threshold for pseudo labels",
            where="MODEL.CLIP.CONCEPT_THRES",
            fix="0.1 is the published value",
        )
    if clip.CROP_REGION_TYPE == "RPN" and clip.OFFLINE_RPN_CONFIG:
        check_rpn_pixels(offline_config(cfg), clip.OFFLINE_RPN_CONFIG)
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
