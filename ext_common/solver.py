"""Optimizer and learning-rate schedule from ``cfg.SOLVER``.

``SOLVER.USE_CUSTOM_SOLVER False`` is detectron2's builder. ``True`` is Detic's (specification
section 5): one group per parameter, learning-rate multipliers by name, SGD or AdamW. Both take
``CLIP_GRADIENTS.CLIP_TYPE full_model`` (one norm over all gradients) besides detectron2's types.
Packages add optimizers and schedules of their own through the registries.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as _build_detectron2_scheduler
from detectron2.solver import build_optimizer as _build_detectron2_optimizer
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ext_common.errors import ConfigError
from ext_common.registries import LR_SCHEDULE_REGISTRY, OPTIMIZER_REGISTRY

logger = logging.getLogger(__name__)

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "ADAMW": torch.optim.AdamW,
}
CLIP_TYPES = ("value", "norm", "full_model")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the configuration asks for, over the parameters that require gradients.

    Clipping happens inside ``optimizer.step()``, that is after a GradScaler has unscaled.

    Raises:
        ConfigError: unknown optimizer or clipping type, or nothing to train.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    _check_choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clipping.CLIP_TYPE, CLIP_TYPES)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "no parameter of the model requires a gradient",
            fix="unfreeze a part of it, or evaluate with --eval-only",
        )
    full_model = clipping.ENABLED and clipping.CLIP_TYPE == "full_model"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.BASE_LR = scaled_lr(cfg)
    if full_model:
        # detectron2 does not know this type: its own clipping stays off
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer: torch.optim.Optimizer = _builder(cfg)(cfg, model)
    if full_model:
        clip_by_global_norm(optimizer, clipping.CLIP_VALUE, clipping.NORM_TYPE)
    return optimizer


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """detectron2's schedule ``SOLVER.LR_SCHEDULER_NAME``; it steps once per iteration.

    The schedule always spans ``SOLVER.MAX_ITER``, also where ``SOLVER.TRAIN_ITER`` stops earlier.

    Raises:
        ConfigError: unknown name, or numbers that make no schedule.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name in LR_SCHEDULE_REGISTRY:
        schedule: torch.optim.lr_scheduler.LRScheduler
        schedule = LR_SCHEDULE_REGISTRY.get(name)(cfg, optimizer)
        return schedule
    try:
        return _build_detectron2_scheduler(cfg, optimizer)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            str(error),
            where="SOLVER.LR_SCHEDULER_NAME, STEPS, WARMUP_* and MAX_ITER",
            fix="WarmupCosineLR and WarmupMultiStepLR with increasing STEPS work",
        ) from error


def effective_batch(cfg: CfgNode) -> int:
    """Images of one step, over all processes and accumulated batches.

    Raises:
        ConfigError: ``SOLVER.ACCUMULATE`` below 1.
    """
    count = cfg.SOLVER.ACCUMULATE
    if count < 1:
        raise ConfigError(f"{count}", where="SOLVER.ACCUMULATE", fix="1 or more")
    return int(cfg.SOLVER.IMS_PER_BATCH * count)


def scaled_lr(cfg: CfgNode) -> float:
    """The learning rate of this run; where it follows from the batch, the log says how."""
    solver = cfg.SOLVER
    images, reference, base = effective_batch(cfg), solver.LR_REFERENCE_BATCH, float(solver.BASE_LR)
    lr = base * images / reference if reference > 0 else base
    if solver.ACCUMULATE > 1 or reference > 0:
        rule = f"{base:g} x {images} / {reference}" if reference > 0 else "SOLVER.BASE_LR as it is"
        logger.info(
            "Effective batch: %d images x %d accumulated = %d per step; learning rate %s = %g",
            solver.IMS_PER_BATCH,
            solver.ACCUMULATE,
            images,
            rule,
            lr,
        )
    return lr


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    backbone_multiplier: float = 1.0,
    custom_multiplier: float = 1.0,
    custom_names: Sequence[str] = (),
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """One optimizer group per trainable parameter (Detic specification section 5).

    Args:
        model: every parameter that requires a gradient is taken once, under its first name.
        base_lr: learning rate before multipliers.
        backbone_multiplier: factor for names that contain ``backbone``.
        custom_multiplier: factor for names that contain one of ``custom_names``; both may apply.
        custom_names: substrings of parameter names.
        weight_decay: written into each group; None = left to the optimizer.

    Returns:
        Dicts with ``params`` (one), ``lr`` and, if given, ``weight_decay``, in the model's order.
    """
    groups = []
    for name, parameter in model.named_parameters():  # shared parameters come once
        if not parameter.requires_grad:
            continue
        lr = base_lr
        if "backbone" in name:
            lr *= backbone_multiplier
        if any(part in name for part in custom_names):
            lr *= custom_multiplier
        group: dict[str, Any] = {"params": [parameter], "lr": lr}
        if weight_decay is not None:
            group["weight_decay"] = weight_decay
        groups.append(group)
    return groups


def clip_by_global_norm(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> None:
    """Scale all gradients together before every step, so that their norm is at most ``max_norm``.

    Args:
        optimizer: gets a hook; its class stays what it is.
        max_norm: limit of the norm over all parameters.
        norm_type: p of the p-norm.
    """

    def clip(stepping: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        parameters = [p for group in stepping.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)


def _builder(cfg: CfgNode) -> Any:
    if cfg.SOLVER.OPTIMIZER in OPTIMIZER_REGISTRY:
        return OPTIMIZER_REGISTRY.get(cfg.SOLVER.OPTIMIZER)
    return _build_custom_optimizer if cfg.SOLVER.USE_CUSTOM_SOLVER else _build_detectron2_optimizer


def _build_custom_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    name = solver.OPTIMIZER
    _check_choice("SOLVER.OPTIMIZER", name, (*OPTIMIZERS, *dict(OPTIMIZER_REGISTRY)))
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        custom_multiplier=solver.CUSTOM_MULTIPLIER,
        custom_names=solver.CUSTOM_MULTIPLIER_NAME,
        weight_decay=solver.WEIGHT_DECAY,
    )
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if name == "SGD":
        options.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    optimizer: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, OPTIMIZERS[name])(
        groups, **options
    )
    return optimizer


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{value!r} is not known", where=key, fix=f"one of {', '.join(choices)}")
