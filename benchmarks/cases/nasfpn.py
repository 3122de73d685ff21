"""NAS-FPN by number of repeats, with and without recomputing activations (issue 7, cost).

Shapes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Problem, Results, Variant
from frozen_backbone_ext.modeling.nasfpn import NasFpn, NasFpnOptions
from frozen_backbone_ext.modeling.part_options import PartOptions


@dataclass(frozen=True)
class _Step:
    model: NasFpn
    features: list[Tensor]

    def run(self, checkpoint: bool) -> Results:
        """Forward and backward; the same statistics every time."""
        self.model.options = replace(self.model.options, checkpoint=checkpoint)
        self.model.zero_grad()
        maps = self.model(self.features)
        total = torch.stack([map_NCHW.square().mean() for map_NCHW in maps]).sum()
        total.backward()
        gradient = self.model.get_parameter("cells.0.0.conv.weight").grad
        assert gradient is not None
        return {"loss": total.detach(), "gradient": gradient.clone()}


def build(device: torch.device, *, repeats: int, width: int = 256, size: int = 512) -> Problem:
    """C3 to C5 of a ResNet-50 from a picture of ``size`` pixels.

    Args:
        device: where.
        repeats: passes through the graph.
        width: channels of the pyramid.
        size: side of the picture.
    """
    torch.manual_seed(0)
    channels = (2 * width, 4 * width, 8 * width)
    parts = PartOptions("BN", activation="silu")
    model = NasFpn(channels, NasFpnOptions(repeats=repeats, width=width, parts=parts))
    features = [
        torch.randn(1, count, size // stride, size // stride, device=device)
        for count, stride in zip(channels, (8, 16, 32), strict=True)
    ]
    # statistics of one place have no variance
    step = _Step(model.to(device).eval().requires_grad_(True), features)
    step.model.train(size >= 256)
    return Problem({"ours": partial(step.run, True), "naive": partial(step.run, False)})


CASE = Case(
    name="nasfpn",
    what="NAS-FPN, one picture of 512 px, training: activations recomputed (ours) or kept",
    variants=tuple(
        Variant(f"{repeats} repeats", partial(build, repeats=repeats)) for repeats in (1, 3, 5, 7)
    ),
    tiny=Variant("tiny", partial(build, repeats=2, width=4, size=256)),
    tolerance=1e-5,
    most_repeats=3,
)
