"""LARS: SGD whose step is scaled by the norms of each weight and its gradient (specification 4).

You et al., "Large Batch Training of Convolutional Networks" (2017), section 4; one-dimensional
parameters (biases, norms) are neither decayed nor adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum over adapted gradients; the learning rate is not inside the momentum.

    For an adapted weight p with gradient g: g + weight_decay * p is multiplied by
    trust * |p| / (|g| + eps), where both norms are above 0. Nothing waits for the device.

    Args:
        params: parameters or groups; a group with ``adapt`` False takes plain SGD steps.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: added to the gradient before its norm is taken.
        trust: trust coefficient.
        eps: added to the norm of the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; gradients are not changed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            grads = list(torch._foreach_mul(grads, _factors(params, grads, group)))
        fresh = [not self.state[p] for p in params]
        buffers = []
        for p, is_new in zip(params, fresh, strict=True):
            if is_new:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        # a new buffer is 0, so the first step gives it the gradient itself
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _factors(params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    weights, slopes = torch._foreach_norm(params), torch._foreach_norm(grads)
    both = torch.stack(list(weights)), torch.stack(list(slopes))
    scaled = group["trust"] * both[0] / (both[1] + group["eps"])
    usable = (both[0] > 0) & (both[1] > 0)
    return list(torch.where(usable, scaled, torch.ones_like(scaled)).unbind())


def lars_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: one-dimensional parameters (plain SGD, no decay) first, then the rest."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0, "adapt": False},
        {"params": [p for p in trained if p.ndim != 1], "weight_decay": weight_decay},
    ]
