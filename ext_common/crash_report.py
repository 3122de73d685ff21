"""The folder that tells afterwards why a training step had no finite loss or gradient."""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

from ext_common.atomic_file import write_bytes
from ext_common.non_finite import NonFiniteStep

CRASH_FOLDER = "crash"
REPORT_FILE = "report.json"

logger = logging.getLogger(__name__)


def write_crash_report(step: NonFiniteStep, cfg: CfgNode, *, rank: int = 0) -> Path | None:
    """Write ``OUTPUT_DIR/crash/iter_N/report.json`` and ``config.yaml``.

    Args:
        step: what happened.
        cfg: complete configuration of the run.
        rank: of the process that writes.

    Returns:
        The folder, or None where it cannot be written: the error of the step matters more.
    """
    folder = Path(cfg.OUTPUT_DIR) / CRASH_FOLDER / f"iter_{step.iteration}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(crash_report(step, cfg, rank=rank), indent=2)
        write_bytes(folder / REPORT_FILE, content.encode() + b"\n")
        write_bytes(folder / "config.yaml", cfg.dump().encode())
    except OSError as error:
        logger.error("The crash report cannot be written: %s", error)
        return None
    logger.error("What is known about iteration %d is in %s", step.iteration, folder)
    return folder


def crash_report(step: NonFiniteStep, cfg: CfgNode, *, rank: int = 0) -> dict[str, Any]:
    """What the report holds; numbers that JSON has no word for (NaN, inf) are text."""
    return {
        "iteration": step.iteration,
        "error": str(step.error()),
        "process": rank,
        "processes": [
            {"images": list(seen.images), "losses": _numbers(seen.losses)}
            for seen in step.processes
        ],
        "learning_rates": sorted(set(step.learning_rates)),
        "gradient_norms": _numbers(step.gradient_norms),
        "amp": {"enabled": cfg.SOLVER.AMP.ENABLED, "dtype": cfg.SOLVER.AMP.DTYPE},
        "seed": cfg.SEED,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "detectron2": detectron2.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
    }


def _numbers(values: dict[str, float]) -> dict[str, float | str]:
    return {
        name: value if np.isfinite(value) else str(float(value)) for name, value in values.items()
    }
