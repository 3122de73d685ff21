"""Times of several implementations, taken in turns so that a slow moment hits all of them.

A turn is a block of calls of one implementation, after calls that are not timed: a training step
does not find its operands thrown out of the cache by another implementation either.

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

BLOCK = 10


@dataclass(frozen=True)
class Times:
    """Seconds of one call."""

    median: float
    fastest: float


def measure_times(
    implementations: Mapping[str, Implementation], *, device: torch.device, warmup: int, repeat: int
) -> dict[str, Times]:
    """Time of each implementation over ``repeat`` calls, ``warmup`` calls before each block."""
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for start in range(0, repeat, BLOCK):
        for name, run in implementations.items():
            for _ in range(warmup):
                run()
            for _ in range(min(BLOCK, repeat - start)):
                seconds[name].append(_seconds(run, device))
    return {name: Times(statistics.median(s), min(s)) for name, s in seconds.items()}


def _seconds(run: Implementation, device: torch.device) -> float:
    start = now(device)
    run()
    return now(device) - start


def now(device: torch.device) -> float:
    """Seconds of the clock that the module's text describes."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
