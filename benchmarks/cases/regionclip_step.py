"""A step of RegionCLIP pretraining: with stored regions and one pass, or part after part."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.case import Case, Problem, Variant
from benchmarks.regionclip_pretraining import TINY, PretrainingStep, Sizes


def build(device: torch.device, sizes: Sizes) -> Problem:
    """Forward and backward of all three losses.

    ``naive`` runs the RPN, the last stage once for regions and once for whole images, attention with
    all places as queries, texts of 77 tokens and the K x K contrast. ``ours`` takes the same regions
    from the batch, as a file gives them.
    """
    step = PretrainingStep(device, sizes)
    return Problem({"ours": step.ours, "naive": step.naive})


CASE = Case(
    name="regionclip_step",
    what="a pretraining step of RegionCLIP: stored regions and one pass, or the plain computation",
    variants=(
        Variant(
            "RN50 320px", partial(build, sizes=Sizes(image=(320, 416), regions=50)), target=1.3
        ),
        Variant("RN50 800px", partial(build, sizes=Sizes(image=(800, 1088))), target=1.3),
    ),
    tiny=Variant(
        "tiny",
        partial(
            build,
            sizes=Sizes(TINY, image=(80, 96), regions=6, concepts=12, text_layers=1, rpn_width=4),
        ),
    ),
    tolerance=2e-3,  # cosines divided by 0.01, summed in another order
    most_repeats=3,
)
