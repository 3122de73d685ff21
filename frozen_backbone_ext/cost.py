"""What freezing can save at best: the law of the specification (8.2), on any model.

Only convolutions and linear layers are counted; a backward pass costs two forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frozen_backbone_ext.modeling.trunk import find_trunk


@dataclass(frozen=True)
class StepCost:
    """Multiply-adds of one forward pass in training.

    Args:
        trunk: B, of the classification network.
        rest: D, of neck and heads.
        first: dL, of those layers of the rest whose input needs no gradient once the trunk is
            frozen (the laterals).
        idle: of those layers of the trunk whose weights need no gradient as it was counted.
    """

    trunk: float
    rest: float
    first: float
    idle: float = 0.0

    def ideal_ratio(self, speed_up: float = 1.0) -> float:
        """Frozen step / fine-tuning step: ``(3 D + B / k - dL) / (3 D + 3 B)``.

        Args:
            speed_up: k, how much faster the frozen trunk runs than in training (folded norms,
                bfloat16, compilation).
        """
        return (3 * self.rest + self.trunk / speed_up - self.first) / self._full

    def partial_ratio(self) -> float:
        """Step with the layers of ``idle`` at the start of the trunk frozen / fine-tuning step."""
        return 1 - 2 * self.idle / self._full

    def share_of_saving(self, measured_ratio: float, speed_up: float = 1.0) -> float:
        """Measured saving / possible saving; 1 = all of it."""
        return (1 - measured_ratio) / (1 - self.ideal_ratio(speed_up))

    @property
    def _full(self) -> float:
        return 3 * self.rest + 3 * self.trunk


def step_cost(model: nn.Module, forward: Callable[[], Any]) -> StepCost:
    """Count one forward pass.

    Args:
        model: in training mode; its trunk, frozen or not, computes in the ordinary way.
        forward: runs the model once.
    """
    trunk = set(find_trunk(model)[1].modules())
    counted = {"trunk": 0.0, "rest": 0.0, "first": 0.0, "idle": 0.0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        amount = _multiply_adds(module, inputs[0], output)
        counted["trunk" if module in trunk else "rest"] += amount
        if module not in trunk and not inputs[0].requires_grad:
            counted["first"] += amount
        if module in trunk and not module.weight.requires_grad:
            counted["idle"] += amount

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                stack.callback(module.register_forward_hook(count).remove)
        with torch.enable_grad():
            forward()
    return StepCost(**counted)


def _multiply_adds(module: nn.Module, given: Tensor, output: Tensor) -> float:
    if isinstance(module, nn.ConvTranspose2d):
        per_input = module.out_channels // module.groups * math.prod(module.kernel_size)
        return float(given.numel() * per_input)
    if isinstance(module, nn.Conv2d):
        per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
        return float(output.numel() * per_output)
    assert isinstance(module, nn.Linear)
    return float(output.numel() * module.in_features)
