"""Whether a training shows every picture the same way each time, as caches need it."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from frozen_backbone_ext.data.copy_paste_loader import REPEATED, UNIFORM


def random_views(cfg: CfgNode) -> list[str]:
    """The keys that change a picture from one time to the next, with what they would have to be."""
    options = cfg.INPUT
    found = []
    if cfg.DATALOADER.SAMPLER_TRAIN in (UNIFORM, REPEATED):
        found.append("DATALOADER.SAMPLER_TRAIN should not be one of Copy-Paste")
    if options.RANDOM_FLIP != "none":
        found.append("INPUT.RANDOM_FLIP should be none")
    if options.CUSTOM_AUG == "EfficientDetResizeCrop":
        low, high = options.SCALE_RANGE
        if low != high or high > 1:  # what does not fit the square is cut at a random place
            found.append("INPUT.SCALE_RANGE should be (1.0, 1.0)")
    elif options.CUSTOM_AUG in ("", "ResizeShortestEdge"):
        if len(set(options.MIN_SIZE_TRAIN)) > 1:
            found.append("INPUT.MIN_SIZE_TRAIN should be one number")
        if options.CROP.ENABLED and not options.CUSTOM_AUG:
            found.append("INPUT.CROP.ENABLED should be False")
    else:
        found.append("INPUT.CUSTOM_AUG should be EfficientDetResizeCrop or ResizeShortestEdge")
    return found


def require_fixed_views(cfg: CfgNode, key: str) -> None:
    """Refuse a cache whose pictures never come again.

    Args:
        cfg: complete configuration of a training.
        key: of the cache's folder.

    Raises:
        ConfigError: naming every key that draws at random.
    """
    problems = random_views(cfg)
    if problems:
        raise ConfigError(
            f"a cache is for pictures that come again pixel by pixel: {'; '.join(problems)}",
            where=key,
            fix="set these keys, or leave the folder empty",
        )
