"""The demo's table and plot: AP of base and novel classes, step by step, over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = {
    "AP50 base": ("AP50-group-base"),
    "AP50 novel": ("AP50-group-novel"),
    "AP base": ("AP-group-base"),
    "AP novel": ("AP-group-novel"),
}


@dataclass(frozen=True)
class Scores:
    """Box AP (percent) of one evaluated model, by the columns of the table."""

    values: Mapping[str, float]


def read_scores(path: Path) -> Scores:
    """Scores from the ``results.json`` that tools/train_net.py writes.

    Raises:
        KeyError: the file has no box results with the groups base and novel.
    """
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    while "bbox" not in results:
        if len(results) != 1:
            raise KeyError(f"{path} holds no box results")
        results = next(iter(results.values()))
    return Scores({column: float(results["bbox"][key]) for column, key in COLUMNS.items()})


def format_table(rows: Mapping[str, Sequence[Scores]]) -> str:
    """A Markdown table: one line per step, mean over the seeds and ± their standard deviation."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for title, runs in rows.items():
        cells = [_cell([run.values[column] for run in runs]) for column in COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def plot(rows: Mapping[str, Sequence[Scores]], path: Path) -> None:
    """Bars of AP50 for base and novel classes, a dot for every seed; written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), dpi=120)
    columns = ("AP50 base", "AP50 novel")
    width = 0.8 / len(rows)
    shades = ("#9aa7b1", "#2a78b8", "#5f6b57")
    for index, (title, runs) in enumerate(rows.items()):
        for place, column in enumerate(columns):
            values = [run.values[column] for run in runs]
            x = place + (index - (len(rows) - 1) / 2) * width
            colour = shades[index % len(shades)]
            label = title if place == 0 else None
            bar = axes.bar(x, statistics.fmean(values), width * 0.92, color=colour, label=label)
            axes.bar_label(bar, fmt="%.0f", padding=3, fontsize=9)
            axes.plot([x] * len(values), values, "o", color="black", markersize=2.5, alpha=0.6)
    axes.set_xticks(range(len(columns)), ["base classes (with boxes)", "novel classes (no boxes)"])
    axes.set_ylabel("box AP50 on demo_val")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
