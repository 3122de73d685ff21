"""Results of an evaluation as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ext_common.atomic_file import writing

RESULTS_FILE = "results.json"


def write_results(results: Mapping[str, Mapping[str, Any]], folder: str | Path) -> Path:
    """Write ``results.json``: dataset -> task -> metric -> number (null where there is none).

    Returns:
        The file.
    """
    path = Path(folder) / RESULTS_FILE
    text = json.dumps(_without_nan(results), indent=2)
    with writing(path) as file:
        file.write(text.encode() + b"\n")
    return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
