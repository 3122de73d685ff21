"""Peak memory of calls in this process, for benchmarks that keep one large model.

:mod:`benchmarks.memory` forks a process per implementation and is more exact: here a process may
still hold memory of an earlier call, so the figures are lower bounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


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
        elif _RESET.exists():
            _RESET.write_text("5")
            self._before = _megabytes("VmRSS:")

    def megabytes(self) -> float:
        """10^6 bytes beyond what there was; 0 where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        return _megabytes("VmHWM:") - self._before if _RESET.exists() else 0.0


def restarted(module: str) -> int | None:
    """Run a module's command in a process that returns the memory of freed tensors.

    Returns:
        Its exit code; None where this is that process.
    """
    if _THRESHOLD in os.environ:
        return None
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, _THRESHOLD: "65536"}, check=False).returncode


def _megabytes(field: str) -> float:
    with _STATUS.open() as stream:
        found = [line.split()[1] for line in stream if line.startswith(field)]
    return int(found[0]) * 1.024e-3
