"""The step of :mod:`benchmarks.cases.soco_step` with all widths of the paper: minutes on a CPU."""

from __future__ import annotations

from benchmarks.case import Case, Variant
from benchmarks.cases.soco_step import TOLERANCE, build_tiny, variants

CASE = Case(
    name="soco_step_full",
    what="pretraining step of SoCo, R50-FPN with all widths: 2 pictures on a CPU, 64 on a GPU",
    variants=variants(),
    tiny=Variant("tiny", build_tiny),
    tolerance=TOLERANCE,
    most_repeats=3,
)
