"""Schedules in images seen, so that one file serves every batch size (spec 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from ext_common.registries import FINISH_CONFIG_REGISTRY
from ext_common.solver import effective_batch


@dataclass(frozen=True)
class Iterations:
    """A schedule in iterations.

    Args:
        max_iter: length.
        steps: where the learning rate falls.
        warmup: length of the warm-up.
    """

    max_iter: int
    steps: tuple[int, ...]
    warmup: int


def in_iterations(
    epochs: float, per_epoch: int, drop_epochs: Sequence[float], warmup_images: int, batch: int
) -> Iterations:
    """A schedule in images as iterations of ``batch`` images.

    Args:
        epochs: length, in epochs.
        per_epoch: images of an epoch.
        drop_epochs: where the learning rate falls, rising.
        warmup_images: length of the warm-up.
        batch: images per step over all processes and accumulated batches.

    Raises:
        ConfigError: numbers that make no schedule.
    """
    drops = list(drop_epochs)
    if per_epoch < 1 or batch < 1 or drops != sorted(drops) or (drops and drops[-1] >= epochs):
        raise ConfigError(
            f"{epochs} epochs of {per_epoch} images with drops at {drops}",
            where="SOLVER.IMAGES",
            fix="PER_EPOCH is 1 or more, DROP_EPOCHS rise and end before EPOCHS",
        )
    return Iterations(
        max(round(epochs * per_epoch / batch), 1),
        tuple(round(epoch * per_epoch / batch) for epoch in drops),
        round(warmup_images / batch),
    )


@FINISH_CONFIG_REGISTRY.register()
def finish_a_schedule_in_images(cfg: CfgNode, training: bool) -> None:
    """Where ``SOLVER.IMAGES.EPOCHS`` is set, write the schedule in iterations into the keys.

    Args:
        cfg: changed in place; doing it twice changes nothing.
        training: False leaves it alone.

    Raises:
        ConfigError: numbers that make no schedule, or two rules for the learning rate.
    """
    images = cfg.SOLVER.IMAGES
    if not training or not images.EPOCHS:
        return
    batch = effective_batch(cfg)
    found = in_iterations(images.EPOCHS, images.PER_EPOCH, images.DROP_EPOCHS, images.WARMUP, batch)
    cfg.SOLVER.MAX_ITER = found.max_iter
    cfg.SOLVER.STEPS = found.steps
    cfg.SOLVER.WARMUP_ITERS = found.warmup
    if images.LR_PER_IMAGE and cfg.SOLVER.LR_REFERENCE_BATCH > 0:
        raise ConfigError(
            f"{images.LR_PER_IMAGE:g}, and SOLVER.LR_REFERENCE_BATCH scales the rate as well",
            where="SOLVER.IMAGES.LR_PER_IMAGE",
            fix="set one of the two to 0",
        )
    if images.LR_PER_IMAGE:
        cfg.SOLVER.BASE_LR = images.LR_PER_IMAGE * batch
