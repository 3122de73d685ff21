"""Where the regions of pretraining come from, and how many are used (specification 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from ext_common.errors import ConfigError
from regionclip_ext.modeling.regions.drawn import GridRegions, RandomRegions
from regionclip_ext.modeling.regions.offline import build_offline_rpn
from regionclip_ext.modeling.regions.source import RegionSource

REGION_TYPES = ("RPN", "RANDOM", "GRID", "FILE")
"""Values of ``MODEL.CLIP.CROP_REGION_TYPE`` in pretraining."""

DEFAULT_RANDOM_REGIONS = 100


def build_region_source(cfg: CfgNode) -> RegionSource | None:
    """The source of ``CROP_REGION_TYPE``.

    Returns:
        None for FILE: the loader gives the regions with the samples.

    Raises:
        ConfigError: another type, or an RPN that cannot be built.
    """
    clip = cfg.MODEL.CLIP
    kind = clip.CROP_REGION_TYPE
    if kind == "RPN":
        return build_offline_rpn(cfg, top_k=clip.PRETRAIN_RPN_REGIONS)
    if kind == "RANDOM":
        return RandomRegions(clip.PRETRAIN_SAMPLE_REGIONS or DEFAULT_RANDOM_REGIONS)
    if kind == "GRID":
        return GridRegions()
    if kind == "FILE":
        return None
    raise ConfigError(
        f"{kind!r} are no regions for pretraining",
        where="MODEL.CLIP.CROP_REGION_TYPE",
        fix=f"one of {', '.join(REGION_TYPES)}",
    )


def sample_regions(proposals: Sequence[Instances], count: int | None) -> list[Boxes]:
    """A random choice of each image's regions, in random order; all where there are fewer.

    Chance is torch's own of the CPU, whose state a checkpoint keeps.

    Args:
        proposals: with ``proposal_boxes``.
        count: most regions of an image; None = all.
    """
    chosen = []
    for found in proposals:
        boxes: Boxes = found.proposal_boxes
        if count is not None:
            order = torch.randperm(len(boxes))[:count]
            boxes = boxes[order.to(boxes.device)]
        chosen.append(boxes)
    return chosen
