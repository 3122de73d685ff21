"""Where the golden cases lie: numbers measured on the authors' code.

``GOLDEN_ROOT=DIR python -m pytest tests -k golden`` checks any folder of the same format.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def golden_root() -> Path:
    """Folder with one sub-folder per system (detic, soco, regionclip, frozen_backbone)."""
    return Path(os.environ.get("GOLDEN_ROOT") or Path(__file__).parent / "golden")


def golden_arrays(system: str, name: str) -> dict[str, np.ndarray]:
    """All arrays of one case, e.g. ``golden_arrays("detic", "box_losses.npz")``."""
    with np.load(golden_root() / system / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
