"""Results of a run: records for JSON, a table for people, and the machine they belong to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One implementation of one variant.

    Attributes:
        median_ms, min_ms: time of a call (:mod:`benchmarks.timing`).
        peak_mb: memory at its peak beyond the inputs, 10^6 bytes; None = unknown.
        times_faster_than_naive: naive's median over this one's.
        difference: largest deviation from naive, as a share of the largest magnitude.
        equal: whether that is within the case's tolerance.
        target: required ``times_faster_than_naive``; None = none.
    """

    case: str
    variant: str
    implementation: str
    median_ms: float
    min_ms: float
    peak_mb: float | None
    times_faster_than_naive: float
    difference: float
    equal: bool
    target: float | None

    @property
    def reached(self) -> bool:
        """Whether the target, if there is one, is reached."""
        return self.target is None or self.times_faster_than_naive >= self.target


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on. Nothing that names a person or a host."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def as_json(rows: Sequence[Row], device: torch.device) -> dict[str, Any]:
    """Content of the ``--json`` file."""
    return {"machine": machine(device), "results": [asdict(row) for row in rows]}


def as_table(rows: Sequence[Row]) -> str:
    """Aligned text, one line per implementation (Markdown, so that it can be pasted)."""
    head = ("case", "size", "way", "median ms", "min ms", "peak MB", "faster", "target", "differs")
    lines = [head, tuple("-" * len(word) for word in head)]
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}x"
        lines.append(
            (
                row.case,
                row.variant,
                row.implementation,
                f"{row.median_ms:.2f}",
                f"{row.min_ms:.2f}",
                "?" if row.peak_mb is None else f"{row.peak_mb:.1f}",
                f"{row.times_faster_than_naive:.1f}x",
                target if row.reached else f"{target} MISSED",
                f"{row.difference:.0e}" if row.equal else f"{row.difference:.0e} NOT EQUAL",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
