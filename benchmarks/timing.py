"""Times of several implementations, taken in turns so that a slow moment hits all of them.

On the CPU the clock is the process's CPU time: everything runs in one thread, and other processes
on the machine do not count. On CUDA it is the wall time until the device has finished.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from benchmarks.case import Implementation


@dataclass(frozen=True)
class Times:
    """Seconds of one call."""

    median: float
    fastest: float


def measure_times(
    implementations: Mapping[str, Implementation], *, device: torch.device, warmup: int, repeat: int
) -> dict[str, Times]:
    """Time of each implementation over ``repeat`` calls, after ``warmup`` calls."""
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for turn in range(warmup + repeat):
        for name, run in implementations.items():
            start = _now(device)
            run()
            if turn >= warmup:
                seconds[name].append(_now(device) - start)
    return {name: Times(statistics.median(s), min(s)) for name, s in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
