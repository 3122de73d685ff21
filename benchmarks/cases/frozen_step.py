"""A training step with a frozen trunk, next to full fine-tuning (issue 7, cost; spec 8.2).

``python -m benchmarks.frozen_cost`` puts the same steps next to the law of the specification.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Problem, Variant
from benchmarks.frozen_steps import SMALL, make_steps


def build(device: torch.device, **options: Any) -> Problem:
    """The step in every way; the options are those of ``make_steps``."""
    return Problem({name: step.run for name, step in make_steps(device, **options).items()})


CASE = Case(
    name="step_frozen",
    what="a training step of Faster R-CNN R50-FPN: the trunk fine-tuned, frozen in several ways",
    variants=(
        Variant("512 px", build),
        Variant("320 px, 2 images", partial(build, size=320, images=2)),
    ),
    tiny=Variant("tiny", partial(build, size=128, changes=SMALL)),
    tolerance=1e-4,  # folded norms round differently
    most_repeats=3,
)
