"""The target network: a slow copy of the online one (specification 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def momentum_at(step: int, total: int, base: float = 0.99) -> float:
    """m(k) = 1 - (1 - base) (cos(pi k / total) + 1) / 2: from ``base`` up to 1."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step / total) + 1.0) / 2.0


def momentum_steps(images: float, processes: float, batch: float, epochs: float) -> int:
    """Steps in ``epochs`` as the released code counts them, whole epochs not rounded down.

    Args:
        images: of the dataset.
        processes: GPUs.
        batch: images per process.
        epochs: the whole run for the total; the epochs before a start for the first step.
    """
    return int(images / processes / batch * epochs)


@torch.no_grad()
def move_towards(targets: Sequence[Tensor], onlines: Sequence[Tensor], momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * online, in place and in one pass."""
    torch._foreach_lerp_(list(targets), list(onlines), 1.0 - momentum)


def freeze_as_copy(target: nn.Module, online: nn.Module) -> None:
    """Give ``target`` the weights and statistics of ``online``, and take it out of training."""
    target.load_state_dict(online.state_dict())
    target.requires_grad_(False)
