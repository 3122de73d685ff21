"""Combinations of SoCo's keys that cannot work, refused before anything is built."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import CONFIG_CHECK_REGISTRY
from soco_ext.modeling.fpn import PyramidLevels
from soco_ext.modeling.pyramid_model import DENSE, RegionOptions, pyramid_levels
from soco_ext.solver.schedule import WarmUp

LOADER = "SoCoViews"
_MODELS = ("SoCoFPN", "SoCoC4")


@CONFIG_CHECK_REGISTRY.register()
def check_soco(cfg: CfgNode, training: bool) -> None:
    """Check the keys of a pretraining.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in _MODELS:
        return
    if not training or cfg.DATASETS.TEST:
        raise ConfigError(
            "SoCo's pretraining has no test set",
            where="DATASETS.TEST",
            fix="leave it empty; export the weights and fine-tune a detector (docs/soco.md)",
        )
    if cfg.DATALOADER.SAMPLER_TRAIN != LOADER:
        raise ConfigError(
            f"{cfg.DATALOADER.SAMPLER_TRAIN!r} does not make views",
            where="DATALOADER.SAMPLER_TRAIN",
            fix=f"set it {LOADER}",
        )
    WarmUp(cfg.SOLVER.WARMUP_ITERS, cfg.SOCO.SCHEDULE.MULTIPLIER)
    if name == "SoCoFPN":
        _check_levels(cfg)
    else:
        _check_no_levels(cfg)
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError(
            "the statistics of pretraining are those of its batches",
            where="TEST.PRECISE_BN.ENABLED",
            fix="set it False; it belongs to fine-tuning",
        )


def _check_no_levels(cfg: CfgNode) -> None:
    """The model without a pyramid reads none of its keys."""
    if pyramid_levels(cfg) == PyramidLevels() and cfg.SOCO.LEVEL_USE == DENSE:
        return
    raise ConfigError(
        "SoCoC4 has no pyramid: one map, and all boxes on it",
        where="SOCO.PYRAMID, SOCO.LEVEL_USE",
        fix="leave them as they are, or set MODEL.META_ARCHITECTURE SoCoFPN",
    )


def _check_levels(cfg: CfgNode) -> None:
    RegionOptions(cfg.SOCO.LEVEL_USE, cfg.SOCO.POOLER_RESOLUTION)
    views = cfg.SOCO.VIEWS
    used = views.AWARE_END - views.AWARE_START
    outs = pyramid_levels(cfg).outs
    if used != outs:
        raise ConfigError(
            f"boxes go to {used} levels and the pyramid has {outs} (SOCO.PYRAMID.NUM_OUTS)",
            where="SOCO.VIEWS.AWARE_START, AWARE_END",
            fix=f"set 0 and {outs}",
        )
