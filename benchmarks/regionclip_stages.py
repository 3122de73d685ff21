"""Share of each part of a RegionCLIP pretraining step: ``python -m benchmarks.regionclip_stages``.

The same model and batch as in the case ``regionclip_step``; also how many pseudo labels change with
the teacher in bfloat16.
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
from benchmarks.regionclip_pretraining import TINY, PretrainingStep, Sizes
from benchmarks.report import machine
from benchmarks.timing import now

PARTS = ("RPN", "teacher", "captions", "student", "losses and backward")


def measure(step: PretrainingStep, device: torch.device, *, rpn: bool) -> dict[str, float]:
    """Milliseconds of every part of one step, and of ``all``.

    Args:
        step: model and batch.
        device: where it is.
        rpn: propose regions in the step instead of taking the stored ones.
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    model: Any = step.model

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            start = now(device)
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[part] += now(device) - start

        return run

    places = {"RPN": "_regions", "teacher": "_match", "captions": "_texts", "student": "_student"}
    with ExitStack() as stack:
        for part, name in places.items():
            stack.enter_context(patch.object(model, name, timed(part, getattr(model, name))))
        stack.enter_context(patch.object(model, "regions", step.rpn if rpn else None))
        start = now(device)
        step.ours()
        total = now(device) - start
    seconds[PARTS[-1]] = total - sum(seconds.values())
    return {name: 1e3 * value for name, value in (*seconds.items(), ("all", total))}


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


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown: milliseconds and percent of each part."""
    names = [*PARTS, "all"]
    lines = ["| way | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for way, row in rows.items():
        cells = [f"{row[name]:.0f} ms ({row[name] / row['all']:.0%})" for name in names]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regionclip_stages")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", "320", "800"), default="320")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    sizes = {
        "tiny": Sizes(TINY, image=(80, 96), regions=6, concepts=12, text_layers=1, rpn_width=4),
        "320": Sizes(image=(320, 416), regions=50),
        "800": Sizes(image=(800, 1088)),
    }[args.size]
    step = PretrainingStep(device, sizes)
    step.ours()
    rows: dict[str, dict[str, float]] = {}
    for rpn in (False, True):
        measured = [measure(step, device, rpn=rpn) for _ in range(args.repeat)]
        rows["RPN in the step" if rpn else "stored regions"] = {
            name: statistics.median(row[name] for row in measured) for name in measured[0]
        }
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(table(rows))
    print(f"pseudo labels with the teacher in bfloat16: {label_agreement(step):.1%} the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
