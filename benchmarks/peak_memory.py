"""Peak memory of calls in this process, for benchmarks that keep one large model.

:mod:`benchmarks.memory` forks a process per implementation and is more exact: here a process may
still hold memory of an earlier call, so the figures are lower bounds.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from benchmarks.resident import KEEP_FREED_PAGES_OUT, is_told, peak_bytes, start_peak


class PeakMemory:
    """From its making on.

    Args:
        device: CUDA: the allocator's peak; otherwise the process's (Linux).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) / 1e6
        elif is_told():
            self._before = start_peak() / 1e6

    def megabytes(self) -> float:
        """10^6 bytes beyond what there was; 0 where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        return peak_bytes() / 1e6 - self._before if is_told() else 0.0


def restarted(module: str) -> int | None:
    """Run a module's command in a process that returns the memory of freed tensors.

    Returns:
        Its exit code; None where this is that process.
    """
    if KEEP_FREED_PAGES_OUT.keys() <= os.environ.keys():
        return None
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    environment = {**os.environ, **KEEP_FREED_PAGES_OUT}
    return subprocess.run(command, env=environment, check=False).returncode
