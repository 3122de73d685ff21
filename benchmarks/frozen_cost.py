"""What freezing the trunk saves, next to what it can save at best (spec 8.2).

    python -m benchmarks.frozen_cost
    python -m benchmarks.frozen_cost --device cuda --size 1024 --images 8
    python -m benchmarks.frozen_cost --config-file configs/frozen_backbone/NASFPN-Cascade_R50_frozen.yaml

B, D and dL are multiply-adds of the trunk, of the rest, and of the laterals' input gradients. The
law is ``(3 D + B / k - dL) / (3 D + 3 B)``; k, how much faster the frozen trunk runs than in
training, is measured. On CUDA everything runs under bfloat16 autocast, and the trunk also with
folded norms, bfloat16 weights, channels last and compiled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import NAIVE, Problem
from benchmarks.cases.frozen_step import CASE
from benchmarks.frozen_steps import FAST, WAYS, FrozenStep, Settings, Way, make_steps
from benchmarks.memory import cpu_peaks, cuda_peaks
from benchmarks.report import machine
from benchmarks.saved_memory import saved_for_backward
from benchmarks.timing import measure_times
from frozen_backbone_ext.cost import StepCost, step_cost
from frozen_backbone_ext.modeling.trunk import find_trunk


@dataclass(frozen=True)
class CostRow:
    """One way.

    Args:
        what: which.
        seconds: of a step, the fastest.
        ratio: to full fine-tuning: median over the rounds.
        law: the ratio that the operations allow.
        speed_up: k of the frozen trunk; None where it is not frozen.
        share: of the saving that the law with k = 1 allows; None where there is none.
        saved: bytes saved for the backward pass.
        peak: bytes at the peak of a step beyond weights and pictures; None = not measured.
    """

    what: str
    seconds: float
    ratio: float
    law: float
    speed_up: float | None
    share: float | None
    saved: int
    peak: int | None


def measure(
    steps: Mapping[str, FrozenStep],
    ways: Mapping[str, Way],
    device: torch.device,
    *,
    rounds: int = 3,
    peaks: Mapping[str, int] | None = None,
) -> tuple[StepCost, list[CostRow]]:
    """Count and measure.

    Args:
        steps: of ``make_steps``; ``naive`` and ``ours`` are among them.
        ways: of the same names.
        device: where they are.
        rounds: all ways take turns this often.
        peaks: memory by way, if it is known.
    """
    cost = step_cost(steps["ours"].model, steps["ours"].forward)
    seconds = _in_turns({name: step.run for name, step in steps.items()}, device, rounds)
    trunks = _in_turns({name: step.trunk() for name, step in steps.items()}, device, rounds)
    ratios = {
        name: sorted(t / n for t, n in zip(times, seconds[NAIVE], strict=True))[rounds // 2]
        for name, times in seconds.items()
    }
    rows = []
    for name, step in steps.items():
        frozen = not any(p.requires_grad for p in find_trunk(step.model)[1].parameters())
        own = cost if frozen else step_cost(step.model, step.forward)
        law = own.ideal_ratio() if frozen else own.partial_ratio()
        speed_up = min(trunks[NAIVE]) / min(trunks[name]) if frozen else None
        rows.append(
            CostRow(
                ways[name].what,
                min(seconds[name]),
                ratios[name],
                law,
                speed_up,
                (1 - ratios[name]) / (1 - law) if law < 1 else None,
                saved_for_backward(step.model, step.forward),
                (peaks or {}).get(name),
            )
        )
    return cost, rows


def _in_turns(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds per call and round; a busy moment hits all calls of a round alike."""
    warmup, repeat = (3, 10) if device.type == "cuda" else (0, 1)
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        found = measure_times(calls, device=device, warmup=warmup, repeat=repeat)
        for name, times in found.items():
            seconds[name].append(times.median)
    return seconds


def as_markdown(cost: StepCost, rows: Sequence[CostRow]) -> str:
    """Counts, and a table."""
    lines = [
        f"B {cost.trunk / 1e9:.1f}, D {cost.rest / 1e9:.1f}, dL {cost.first / 1e9:.1f} GMAC per "
        f"step; law at k = 1: {cost.ideal_ratio():.3f}",
        "",
        "| trunk | s/step | of full | law | share of its saving | k | law at k "
        "| saved for backward, MiB | peak, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        at_k = None if row.speed_up is None else cost.ideal_ratio(row.speed_up)
        numbers = (
            f"{row.seconds:.3f}",
            f"{row.ratio:.3f}",
            f"{row.law:.3f}",
            _number(row.share, ".2f"),
            _number(row.speed_up, ".2f"),
            _number(at_k, ".3f"),
            f"{row.saved / 2**20:.0f}",
            _number(None if row.peak is None else row.peak / 2**20, ".0f"),
        )
        lines.append(f"| {row.what} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frozen_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--config-file", type=Path, help="default: Faster R-CNN R50-FPN")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures")
    parser.add_argument("--images", type=int, default=1, help="in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--fast", action="store_true", help="on the CPU too: bf16, compiled trunk")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser


def _peaks(
    args: argparse.Namespace, steps: Mapping[str, FrozenStep], device: torch.device
) -> dict[str, int]:
    if args.no_memory:
        return {}
    if device.type == "cuda":
        return cuda_peaks(Problem({name: step.run for name, step in steps.items()}), device)
    variants = {(512, 1): "512 px", (320, 2): "320 px, 2 images"}
    name = variants.get((args.size, args.images))
    if name is None or args.config_file or args.opts:
        return {}  # processes that measure it build one of the case's sizes
    return cpu_peaks(CASE.name, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = _parser()
    args = parser.parse_args(argv)
    if len(args.opts) % 2:
        parser.error("KEY VALUE pairs expected")
    torch.set_num_threads(1)
    device = torch.device(args.device)
    fast = args.fast or device.type == "cuda"
    ways = WAYS | (FAST if fast else {})
    changes: Settings = dict(zip(args.opts[0::2], args.opts[1::2], strict=True))
    steps = make_steps(
        device,
        ways=ways,
        config_file=args.config_file or "",
        changes=changes,
        size=args.size,
        images=args.images,
        mixed=fast,
    )
    peaks = _peaks(args, steps, device)
    cost, rows = measure(steps, ways, device, rounds=args.rounds, peaks=peaks)
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(as_markdown(cost, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
