"""A pretraining step of SoCo: one run of the region head, or one per box set and level.

The released computation has batch statistics per run (SoCo specification 3.1), which our single run
keeps. ``one pass`` also runs the backbone once for views 1 and 2, whose sizes are equal. ``sparse``
computes a box on its own level only; with batch norms that is another function, so it is compared
without them, where it is the same one.

All layers are half as wide as the paper's, so that the case ends in minutes on a CPU; the paper's
widths are the case ``soco_step_full``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.case import Case, Problem, Variant
from benchmarks.soco_steps import (
    HALF_WIDTH,
    SMALL,
    build_step,
    one_pass_twin,
    plain_twin,
    sparse_twin,
)

SIZES = {"3 views": (224, 224, 112), "4 views": (224, 224, 192, 112)}
TOLERANCE = 1e-9
"""In float64, in which all sizes are compared: behind ReLUs and norms over eight values, single elements
of float32 gradients differ by tenths of the largest (specification 9.4)."""
_TINY = (64, 64, 48)


def images_on(device: torch.device) -> int:
    """Pictures of a batch: as many as a GPU needs to be busy, or as the specification measured."""
    return 64 if device.type == "cuda" else 2


def build(
    device: torch.device,
    *,
    views: str,
    opts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """R50-FPN, every box on all levels."""
    images = images_on(device)
    step = build_step(device, sizes=SIZES[views], images=images, opts=opts, dtype=dtype)
    ways = {"ours": step.run, "one pass": one_pass_twin(step).run}
    return Problem({**ways, "naive": plain_twin(step).run_plain})


def build_sparse(
    device: torch.device,
    *,
    views: str,
    opts: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Without norms; ours is sparse."""
    dense = build_step(
        device, sizes=SIZES[views], images=images_on(device), opts=opts, norms=False, dtype=dtype
    )
    return Problem({"ours": sparse_twin(dense).run, "naive": plain_twin(dense).run_plain})


def build_tiny(device: torch.device) -> Problem:
    """A small model in float64."""
    step = build_step(device, sizes=_TINY, opts=SMALL, dtype=torch.float64)
    ways = {"ours": step.run, "one pass": one_pass_twin(step).run}
    return Problem({**ways, "naive": plain_twin(step).run_plain})


def variants(opts: Sequence[str] = ()) -> tuple[Variant, ...]:
    """All sizes of a model; timed in float32, compared in float64."""
    found = []
    for title, build_size, target in (("", build, 1.2), (", sparse", build_sparse, 1.4)):
        for views in SIZES:
            timed = partial(build_size, views=views, opts=opts)
            compared = partial(timed, dtype=torch.float64)
            found.append(Variant(f"{views}{title}", timed, target, compared))
    return tuple(found)


CASE = Case(
    name="soco_step",
    what="pretraining step of SoCo, R50-FPN of half the widths: forward, target update, backward",
    variants=variants(HALF_WIDTH),
    tiny=Variant("tiny", build_tiny),
    tolerance=TOLERANCE,
    most_repeats=3,
)
