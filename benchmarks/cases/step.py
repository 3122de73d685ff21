"""Whole training steps and whole inference of Detic's R50 model, with and without our fast paths.

``python -m benchmarks.step_stages`` tells where the time goes.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.detic_step import KINDS, SMALL, StepModel, build_step


def build(device: torch.device, *, kind: str, num_classes: int) -> Problem:
    """One picture of 640 pixels (four of 320 with image labels)."""
    step = build_step(device, num_classes=num_classes)
    return Problem({"ours": partial(step.run, kind), "naive": partial(step.run_plain, kind)})


def build_tiny(device: torch.device) -> Problem:
    """All kinds of batches, one after the other, through a small model."""
    step = build_step(device, num_classes=70, size=64, opts=SMALL)
    return Problem({"ours": partial(_all, step, False), "naive": partial(_all, step, True)})


def _all(step: StepModel, plain: bool) -> Results:
    run = step.run_plain if plain else step.run
    return {f"{kind} {name}": value for kind in KINDS for name, value in run(kind).items()}


CASE = Case(
    name="step",
    what="a whole step of Detic R50, 640 px: box batch, image-label batch, inference",
    variants=tuple(
        Variant(f"{kind} {count}", partial(build, kind=kind, num_classes=count))
        for count in (1203, 22047)
        for kind in KINDS
    ),
    tiny=Variant("tiny", build_tiny),
    tolerance=1e-4,  # sums over millions of float32 products, in another order
    most_repeats=3,
)
