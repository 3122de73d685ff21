"""A pretraining step of SoCo: one run of the region head, or one per box set and level.

The released computation has batch statistics per run (SoCo specification 3.1), which our single run
keeps. ``sparse`` computes a box on its own level only; with batch norms that is another function,
so it is compared without them, where it is the same one.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.case import Case, Problem, Variant
from benchmarks.soco_steps import SMALL, build_step, twin

SIZES = {"3 views": (224, 224, 112), "4 views": (224, 224, 192, 112)}
_TINY = (64, 64, 48)


def build(device: torch.device, *, views: str, images: int) -> Problem:
    """R50-FPN with all widths of the paper."""
    step = build_step(device, sizes=SIZES[views], images=images)
    return Problem({"ours": step.run, "naive": step.run_plain})


def build_sparse(device: torch.device, *, views: str, images: int) -> Problem:
    """Without norms; ours is sparse."""
    dense = build_step(device, sizes=SIZES[views], images=images, norms=False)
    implementations = {"ours": twin(dense, "sparse").run, "dense": dense.run}
    return Problem({**implementations, "naive": dense.run_plain})


def build_tiny(device: torch.device) -> Problem:
    """A small model."""
    step = build_step(device, sizes=_TINY, opts=SMALL)
    return Problem({"ours": step.run, "naive": step.run_plain})


CASE = Case(
    name="soco_step",
    what="pretraining step of SoCo R50-FPN, 3 and 4 views: forward, target update, backward",
    variants=(
        Variant("3 views, 2 images", partial(build, views="3 views", images=2), target=1.2),
        Variant("4 views, 2 images", partial(build, views="4 views", images=2), target=1.2),
        Variant("3 views, sparse", partial(build_sparse, views="3 views", images=2), target=1.2),
        Variant("4 views, sparse", partial(build_sparse, views="4 views", images=2), target=1.2),
    ),
    tiny=Variant("tiny", build_tiny),
    tolerance=1e-2,  # gradients in float32, norms over few values (specification 9.4)
    most_repeats=5,
)
