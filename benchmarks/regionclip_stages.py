"""Share of each part of RegionCLIP's work, with peak memory: ``python -m benchmarks.regionclip_stages``.

Pretraining: the model and batch of the case ``regionclip_step``, plain and ours; also how many pseudo
labels change with the teacher in bfloat16. ``--zero-shot``: inference of the published configuration
with several numbers of classes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from benchmarks import regionclip_detector as detector
from benchmarks.case import Results
from benchmarks.equality import largest_difference
from benchmarks.peak_memory import PeakMemory, restarted
from benchmarks.regionclip_pretraining import TINY, PretrainingStep, Sizes
from benchmarks.report import machine
from benchmarks.stage_clock import ExclusiveClock, Place, stage_table

PARTS = ("RPN", "common stages", "teacher", "captions", "student", "backward")
SIZES = {
    "tiny": Sizes(TINY, image=(80, 96), regions=6, concepts=12, text_layers=1, rpn_width=4),
    "320": Sizes(image=(320, 416), regions=50),
    "800": Sizes(image=(800, 1088)),
}
PICTURES = {
    "tiny": ((96, 128), 20),
    "320": ((320, 416), 300),
    "800": ((800, 1088), 1000),
}
"""Size and number of regions for inference."""

Row = dict[str, float]
Measured = tuple[Row, Results]


def pretraining_ways(step: PretrainingStep) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Name of each way: whether it is the plain one, and what it changes in the model."""
    options = step.model.options
    return {
        "plain": (True, {}),
        "ours, RPN in the step": (False, {"regions": step.rpn}),
        "ours, stored regions": (False, {}),
        "the same, nothing shared": (False, {"options": replace(options, share_frozen=False)}),
    }


def measure_pretraining(
    step: PretrainingStep, device: torch.device, repeat: int
) -> dict[str, Measured]:
    """Milliseconds of the parts of a step in every way, and its losses and gradients."""
    model: Any = step.model
    places: list[Place] = [
        ("RPN", model, "_regions"),
        ("common stages", model, "_first_maps"),
        ("teacher", model, "_match"),
        ("captions", model, "_texts"),
        ("student", model, "_student"),
        ("backward", step, "backward"),
        ("RPN", type(step.rpn), "propose"),
        ("teacher", step, "plain_teacher"),
        ("captions", step, "plain_texts"),
        ("student", step, "plain_student"),
    ]
    rows = {}
    for way, (plain, changes) in pretraining_ways(step).items():
        with ExitStack() as stack:
            for name, value in changes.items():
                stack.enter_context(patch.object(model, name, value))
            run = step.naive if plain else step.ours
            rows[way] = _measure(run, PARTS, places, device, repeat)
    return rows


def measure_zero_shot(
    found: detector.ZeroShotDetector, device: torch.device, repeat: int
) -> dict[str, Measured]:
    """Milliseconds of the stages of one picture, plain and ours, and its scores."""
    ours = _measure(found.ours, detector.STAGES, found.places(), device, repeat)
    with found.plain():  # watched after they are replaced
        plain = _measure(found.ours, detector.STAGES, found.places(), device, repeat)
    return {"plain": plain, "ours": ours}


def _measure(
    run: Callable[[], Results],
    stages: Sequence[str],
    places: Sequence[Place],
    device: torch.device,
    repeat: int,
) -> Measured:
    """Medians and peak memory of some calls, and what the last one computes."""
    rows: list[Row] = []
    results: list[Results] = []
    memory = PeakMemory(device)
    for _ in range(repeat):
        clock = ExclusiveClock(stages, device)
        with clock.watching(places):
            rows.append(clock.run(lambda: results.append(run())))
    row = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**row, "MB": memory.megabytes()}, results[-1]


def _report(measured: dict[str, Measured], head: str = "way") -> str:
    """The table, and how much the ways differ from the plain one."""
    _, expected = measured["plain"]
    difference = max(largest_difference(found, expected) for _, found in measured.values())
    rows = {way: row for way, (row, _) in measured.items()}
    return f"{stage_table(rows, head=head)}\nresults differ by {difference:.0e} of the largest"


def label_agreement(step: PretrainingStep) -> float:
    """Share of regions whose pseudo label is the same with the teacher in bfloat16."""
    labels = [_labels(step, bf16=bf16) for bf16 in (False, True)]
    return float((labels[0] == labels[1]).float().mean())


def _labels(step: PretrainingStep, *, bf16: bool) -> torch.Tensor:
    model: Any = step.model
    found: list[torch.Tensor] = []
    match = model._match

    def noted(*arguments: Any) -> Any:
        result = match(*arguments)
        found.append(result.labels_R)
        return result

    options = replace(model.options, frozen_bf16=bf16)
    with patch.object(model, "_match", noted), patch.object(model, "options", options):
        step.ours()
    return found[0]


def _pretraining(args: argparse.Namespace, device: torch.device) -> None:
    step = PretrainingStep(device, SIZES[args.size])
    print(_report(measure_pretraining(step, device, args.repeat)))
    print(f"pseudo labels with the teacher in bfloat16: {label_agreement(step):.1%} the same")


def _zero_shot(args: argparse.Namespace, device: torch.device) -> None:
    image, regions = PICTURES[args.size]
    small = detector.SMALL if args.size == "tiny" else ()
    found = detector.ZeroShotDetector(device, image=image, regions=regions, opts=small)
    for classes in args.classes:
        found.know(classes)
        print(_report(measure_zero_shot(found, device, args.repeat), f"{classes} classes"))
        print(f"{regions} regions, {found.candidates} candidates for soft-NMS\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regionclip_stages")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="320", help="of the pictures")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--zero-shot", action="store_true", help="inference instead of pretraining")
    parser.add_argument("--classes", type=int, nargs="+", default=[1203, 6790])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    (_zero_shot if args.zero_shot else _pretraining)(args, device)
    return 0


if __name__ == "__main__":
    again = restarted("benchmarks.regionclip_stages")
    sys.exit(main() if again is None else again)
