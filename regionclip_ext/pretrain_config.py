"""Keys of our own for the speed of pretraining; ``config.py`` has the published ones."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.config import add_default, add_node
from ext_common.registries import CONFIG_REGISTRY


@CONFIG_REGISTRY.register()
def add_regionclip_step_config(cfg: CfgNode) -> None:
    """Keys of our own for the speed of a pretraining step."""
    clip = add_node(cfg.MODEL, "CLIP")
    # regions and whole image in one pass through the last stage
    add_default(clip, "PRETRAIN_JOINT_PASS", True)
    # stem and stages that are frozen (BACKBONE.FREEZE_AT) and equal in student and teacher run once
    add_default(clip, "PRETRAIN_SHARE_FROZEN", True)
    # teacher and RPN in bfloat16, whatever SOLVER.AMP says; changes a few pseudo labels
    add_default(clip, "PRETRAIN_FROZEN_BF16", False)
