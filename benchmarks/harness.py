"""Runs cases: equality first, then time, then memory."""

from __future__ import annotations

import torch

from benchmarks.case import NAIVE, OURS, Case, Variant
from benchmarks.equality import largest_difference
from benchmarks.memory import cpu_peaks, cuda_peaks
from benchmarks.report import Row
from benchmarks.timing import measure_times


def differences(variant: Variant, device: torch.device) -> dict[str, float]:
    """How much each implementation differs from ``naive``; see :mod:`benchmarks.equality`."""
    implementations = (variant.compared or variant.build)(device).implementations
    expected = implementations[NAIVE]()
    return {name: largest_difference(run(), expected) for name, run in implementations.items()}


def run_variant(
    case: Case,
    variant: Variant,
    *,
    device: torch.device,
    warmup: int = 3,
    repeat: int = 30,
    with_memory: bool = True,
) -> list[Row]:
    """Measure all implementations of one variant in the same run."""
    if case.most_repeats is not None:
        warmup, repeat = min(1, warmup), min(case.most_repeats, repeat)
    difference = differences(variant, device)
    problem = variant.build(device)
    times = measure_times(problem.implementations, device=device, warmup=warmup, repeat=repeat)
    peaks: dict[str, int] = {}
    if with_memory and device.type == "cuda":
        peaks = cuda_peaks(problem, device)
    elif with_memory:
        peaks = cpu_peaks(case.name, variant.name)
    rows = []
    for name in problem.implementations:
        bytes_at_peak = peaks.get(name)
        rows.append(
            Row(
                case=case.name,
                variant=variant.name,
                implementation=name,
                median_ms=times[name].median * 1e3,
                min_ms=times[name].fastest * 1e3,
                peak_mb=None if bytes_at_peak is None else bytes_at_peak / 1e6,
                times_faster_than_naive=times[NAIVE].median / times[name].median,
                difference=difference[name],
                equal=difference[name] <= case.tolerance,
                target=variant.target if name == OURS else None,
            )
        )
    return rows
