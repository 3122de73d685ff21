"""Learning rate of every iteration (specification 4): warm-up, then cosine or steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ext_common.errors import ConfigError


class Schedule(Protocol):
    """A learning rate per iteration."""

    def at(self, lr: float, iteration: int) -> float:
        """The rate of ``iteration`` (from 0) where the highest is ``lr``."""


@dataclass(frozen=True)
class WarmUp:
    """lr / multiplier at iteration 0, growing linearly to lr at the last one of the warm-up.

    Args:
        iterations: of the warm-up; 0 = none.
        multiplier: lr over the first rate.

    Raises:
        ConfigError: a multiplier that is not above 0.
    """

    iterations: int
    multiplier: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.multiplier < math.inf:
            raise ConfigError(
                f"a first learning rate of the highest / {self.multiplier}",
                where="SOCO.SCHEDULE.MULTIPLIER",
                fix="above 0, such as 100",
            )

    def covers(self, iteration: int) -> bool:
        """Whether ``iteration`` belongs to it."""
        return 0 < self.iterations >= iteration

    def at(self, lr: float, iteration: int) -> float:
        """The rate of an iteration that it covers."""
        grown = (self.multiplier - 1.0) * iteration / self.iterations + 1.0
        return lr / self.multiplier * grown


@dataclass(frozen=True)
class WarmUpCosine:
    """From lr down to ``minimum`` along half a cosine, between the warm-up and ``iterations``.

    Args:
        warm_up: the beginning.
        iterations: of the whole run.
        minimum: the rate at the end and after it.
    """

    warm_up: WarmUp
    iterations: int
    minimum: float = 1e-6

    def at(self, lr: float, iteration: int) -> float:
        """See :class:`Schedule`."""
        if self.warm_up.covers(iteration):
            return self.warm_up.at(lr, iteration)
        length = max(self.iterations - self.warm_up.iterations, 1)
        done = min((iteration - self.warm_up.iterations) / length, 1.0)
        return self.minimum + (lr - self.minimum) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True)
class WarmUpSteps:
    """lr times ``gamma`` for every milestone that is reached; they count from the start of the run.

    Args:
        warm_up: the beginning.
        milestones: iterations, increasing.
        gamma: factor of each.
    """

    warm_up: WarmUp
    milestones: Sequence[int]
    gamma: float = 0.1

    def at(self, lr: float, iteration: int) -> float:
        """See :class:`Schedule`."""
        if self.warm_up.covers(iteration):
            return self.warm_up.at(lr, iteration)
        return lr * self.gamma ** bisect_right(self.milestones, iteration)


class IterationLR(torch.optim.lr_scheduler.LRScheduler):
    """Applies a schedule to every group of an optimizer, each with its own highest rate.

    Args:
        optimizer: its groups' rates are the highest ones.
        schedule: a rate per iteration; not part of the saved state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self._schedule = schedule
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the current iteration."""
        return [self._schedule.at(float(lr), self.last_epoch) for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The iteration and the highest rates."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}
