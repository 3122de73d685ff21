"""Combinations of this package's keys that cannot work, refused before anything is built."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY
from frozen_backbone_ext.data.copy_paste_loader import REPEATED, UNIFORM
from frozen_backbone_ext.fixed_views import require_fixed_views
from frozen_backbone_ext.pixel_statistics import check_pixels


@CONFIG_CHECK_REGISTRY.register()
def check_frozen_backbone(cfg: CfgNode, training: bool) -> None:
    """Check freezing, Copy-Paste, picture sizes and the second stage.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    if cfg.MODEL.BACKBONE_FREEZE.POLICY:
        _check_freeze(cfg, training)
    if training:
        _check_copy_paste(cfg)
        _check_second_stage(cfg)
    _check_size(cfg)


def _check_freeze(cfg: CfgNode, training: bool) -> None:
    freeze = cfg.MODEL.BACKBONE_FREEZE
    check_pixels(cfg)
    if not freeze.SAVE and not freeze.WEIGHTS:
        raise ConfigError(
            "checkpoints without the trunk need a file to take it from",
            where="MODEL.BACKBONE_FREEZE.SAVE",
            fix="set MODEL.BACKBONE_FREEZE.WEIGHTS, or SAVE True",
        )
    adapted = "build_adapted_backbone" in (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PYRAMID.BOTTOM_UP)
    if freeze.CACHE_FOLDER and adapted:
        raise ConfigError(
            "maps of a trunk with adapters change in training",
            where="MODEL.BACKBONE_FREEZE.CACHE_FOLDER",
            fix="leave it empty",
        )
    if training and freeze.CACHE_FOLDER:
        require_fixed_views(cfg, "MODEL.BACKBONE_FREEZE.CACHE_FOLDER")
    loaded = cfg.MODEL.WEIGHTS or freeze.WEIGHTS or cfg.MODEL.TIMM.PRETRAINED
    if training and not loaded and not freeze.ALLOW_RANDOM:
        raise ConfigError(
            "the backbone is frozen and has no weights: it would stay random",
            where="MODEL.WEIGHTS",
            fix="give weights, or set MODEL.BACKBONE_FREEZE.ALLOW_RANDOM True",
        )


def _check_copy_paste(cfg: CfgNode) -> None:
    if cfg.DATALOADER.SAMPLER_TRAIN not in (UNIFORM, REPEATED):
        return
    if cfg.INPUT.CUSTOM_AUG not in ("", "EfficientDetResizeCrop"):
        raise ConfigError(
            f"Copy-Paste makes squares of INPUT.TRAIN_SIZE, not {cfg.INPUT.CUSTOM_AUG}",
            where="INPUT.CUSTOM_AUG",
            fix="leave it empty",
        )


def _check_second_stage(cfg: CfgNode) -> None:
    stage2 = cfg.MODEL.CLASSIFIER_STAGE2
    key = "MODEL.CLASSIFIER_STAGE2.CACHE_FOLDER"
    if not stage2.ENABLED:
        if stage2.CACHE_FOLDER:
            raise ConfigError(
                "regions change while more than the classifiers is trained",
                where=key,
                fix="leave it empty, or set MODEL.CLASSIFIER_STAGE2.ENABLED True",
            )
        return
    if stage2.CACHE_FOLDER:
        require_fixed_views(cfg, key)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "the second stage trains the classifier of a trained detector",
            where="MODEL.WEIGHTS",
            fix="give the checkpoint of the first stage",
        )


def _check_size(cfg: CfgNode) -> None:
    """Squares of a fixed size that P7 would pad every time."""
    nasfpn = cfg.MODEL.PYRAMID.NECK == "nasfpn"
    builders = (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ADAPTERS.BACKBONE)
    if not nasfpn or "build_pyramid_backbone" not in builders:
        return
    fixed = cfg.INPUT.CUSTOM_AUG == "EfficientDetResizeCrop" or cfg.DATALOADER.SAMPLER_TRAIN in (
        UNIFORM,
        REPEATED,
    )
    if fixed and cfg.INPUT.TRAIN_SIZE % 128:
        raise ConfigError(
            f"{cfg.INPUT.TRAIN_SIZE} is no multiple of 128, the stride of P7",
            where="INPUT.TRAIN_SIZE",
            fix=f"use {-(-cfg.INPUT.TRAIN_SIZE // 128) * 128}",
        )
