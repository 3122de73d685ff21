"""Peak memory of one call, beyond what its inputs take.

CUDA: the allocator's own peak. CPU: the kernel's peak of resident memory (``VmHWM``), reset just
before the call, in a fresh process for each implementation, because a process keeps memory that
an earlier call gave back. ``tracemalloc`` does not see tensors, and ``ru_maxrss`` cannot be reset
and is inherited from the parent process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.queues import SimpleQueue

import torch

from benchmarks.case import Implementation, Problem
from benchmarks.discovery import find_cases
from benchmarks.resident import KEEP_FREED_PAGES_OUT, is_told, peak_bytes, start_peak

_CPU = torch.device("cpu")


def cuda_peaks(problem: Problem, device: torch.device) -> dict[str, int]:
    """Bytes allocated at the peak of each call, less those allocated before it."""
    peaks = {}
    for name, run in problem.implementations.items():
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def cpu_peaks(case: str, variant: str) -> dict[str, int]:
    """Bytes of resident memory at the peak of each call, less those before it.

    Returns:
        Nothing where the system does not tell (no Linux).
    """
    if not is_told():
        return {}
    environment = {**os.environ, **KEEP_FREED_PAGES_OUT, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", case, variant]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=600
    )
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def _peaks_in_child_processes(case_name: str, variant: str) -> dict[str, int]:
    torch.set_num_threads(1)
    (case,) = find_cases(case_name)
    tiny, problem = case.tiny.build(_CPU), case.variant(variant).build(_CPU)
    # forked, so that the inputs are made once; this process itself never runs a backward pass
    context = multiprocessing.get_context("fork")
    peaks = {}
    for name, run in problem.implementations.items():
        answer: SimpleQueue[int] = context.SimpleQueue()
        warm_up = tiny.implementations.get(name, run)
        child = context.Process(target=_measure, args=(warm_up, run, answer))
        child.start()
        peaks[name] = answer.get()
        child.join()
    return peaks


def _measure(warm_up: Implementation, run: Implementation, answer: SimpleQueue[int]) -> None:
    warm_up()  # loads what is loaded lazily
    before = start_peak()
    results = run()
    answer.put(peak_bytes() - before)
    del results


if __name__ == "__main__":
    print(json.dumps(_peaks_in_child_processes(*sys.argv[1:3])))
