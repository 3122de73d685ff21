"""Resident memory of this process as the Linux kernel counts it."""

from __future__ import annotations

from pathlib import Path

KEEP_FREED_PAGES_OUT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment in which every large tensor has pages of its own, which return when it is freed."""
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def is_told() -> bool:
    """Whether the system tells (Linux)."""
    return _RESET.exists()


def start_peak() -> int:
    """Let the peak begin anew; bytes there are now."""
    before = _bytes("VmRSS")
    _RESET.write_text("5")
    return before


def peak_bytes() -> int:
    """The most bytes since :func:`start_peak`."""
    return _bytes("VmHWM")


def _bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
