"""Identity whose gradient is scaled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def scale_gradient(value: Tensor, scale: float) -> Tensor:
    """``value`` itself; its gradient is multiplied by ``scale``."""
    scaled: Tensor = _ScaleGradient.apply(value, scale)
    return scaled
