"""LARS and SoCo's schedules under their names in ``SOLVER``."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ext_common.registries import LR_SCHEDULE_REGISTRY, OPTIMIZER_REGISTRY
from soco_ext.solver.lars import LARS, lars_groups
from soco_ext.solver.schedule import IterationLR, WarmUp, WarmUpCosine, WarmUpSteps


def build_lars(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER LARS``."""
    solver = cfg.SOLVER
    optimizer: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, LARS)(
        lars_groups(model, weight_decay=solver.WEIGHT_DECAY),
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        trust=solver.LARS.TRUST,
        eps=solver.LARS.EPS,
    )
    return optimizer


def build_cosine(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """``SOLVER.LR_SCHEDULER_NAME SoCoCosine``: ``WARMUP_ITERS``, then a cosine to ``MAX_ITER``."""
    keys = cfg.SOCO.SCHEDULE
    schedule = WarmUpCosine(_warm_up(cfg), cfg.SOLVER.MAX_ITER, keys.MIN_LR)
    return IterationLR(optimizer, schedule)


def build_steps(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """``SOLVER.LR_SCHEDULER_NAME SoCoStep``: ``WARMUP_ITERS``, then ``STEPS`` and ``GAMMA``."""
    schedule = WarmUpSteps(_warm_up(cfg), tuple(cfg.SOLVER.STEPS), cfg.SOLVER.GAMMA)
    return IterationLR(optimizer, schedule)


def _warm_up(cfg: CfgNode) -> WarmUp:
    return WarmUp(cfg.SOLVER.WARMUP_ITERS, cfg.SOCO.SCHEDULE.MULTIPLIER)


OPTIMIZER_REGISTRY._do_register("LARS", build_lars)
LR_SCHEDULE_REGISTRY._do_register("SoCoCosine", build_cosine)
LR_SCHEDULE_REGISTRY._do_register("SoCoStep", build_steps)
