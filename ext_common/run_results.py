"""Results of an evaluation as a file and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ext_common.atomic_file import writing

RESULTS_FILE = "results.json"
# single classes are in the file; a table has room for what summarises them
_MOST_COLUMNS = 12


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


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table per dataset: one line per task, the overall metrics as columns."""
    blocks = []
    for dataset, tasks in results.items():
        summaries = {
            task: {name: value for name, value in metrics.items() if not _is_class(name)}
            for task, metrics in tasks.items()
            if isinstance(metrics, Mapping)
        }
        columns = list(dict.fromkeys(name for found in summaries.values() for name in found))
        columns = columns[:_MOST_COLUMNS]
        rows = [[task, *(found.get(name) for name in columns)] for task, found in summaries.items()]
        table = tabulate(rows, headers=["task", *columns], floatfmt=".2f", missingval="-")
        blocks.append(f"{dataset}\n{table}")
    return "\n\n".join(blocks)


def _is_class(metric: str) -> bool:
    """``AP-cat`` is one class; ``AP-group-novel`` is a group."""
    head, dash, rest = metric.partition("-")
    return bool(dash) and head.startswith("AP") and not rest.startswith("group-")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
