"""The target network's update: all weights in one pass, or a new tensor for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Problem, Results, Variant
from soco_ext.modeling.momentum import move_towards
from soco_ext.modeling.resnet import ResNet

_MOMENTUM = 0.99


class _Update:
    """One way to move target weights; results are those of the first call."""

    def __init__(self, onlines: Sequence[Tensor], move: Callable[..., None]) -> None:
        self._onlines = onlines
        self._targets = [nn.Parameter(q + 0.1, requires_grad=False) for q in onlines]
        self._move = move
        self._first: Results | None = None

    def __call__(self) -> Results:
        self._move(self._targets, self._onlines, _MOMENTUM)
        if self._first is None:
            self._first = {str(i): k.clone() for i, k in enumerate(self._targets)}
        return self._first


def rebind(targets: Sequence[Tensor], onlines: Sequence[Tensor], momentum: float) -> None:
    """Specification 3.4, weight by weight."""
    for k, q in zip(targets, onlines, strict=True):
        k.data = k.data * momentum + q.data * (1.0 - momentum)


def build(device: torch.device, *, depth: int, base_width: int = 64) -> Problem:
    """The weights of a ResNet."""
    torch.manual_seed(0)
    onlines = [p.detach() for p in ResNet.of_depth(depth, base_width).to(device).parameters()]
    return Problem({"ours": _Update(onlines, move_towards), "naive": _Update(onlines, rebind)})


CASE = Case(
    name="ema",
    what="exponential moving average of a ResNet's weights: one fused pass, or tensor by tensor",
    variants=(
        Variant("ResNet-50", partial(build, depth=50), target=2),
        Variant("ResNet-101", partial(build, depth=101), target=2),
    ),
    tiny=Variant("tiny", partial(build, depth=18, base_width=4)),
)
