"""Table and plot of an experiment: one line per method, mean and standard deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError

Scores = Mapping[str, float]
"""Column of the table -> value, in percent."""

BOX_COLUMNS = ("AP", "AP50")


def read_box_scores(path: Path, columns: Sequence[str] = BOX_COLUMNS) -> Scores:
    """Box AP from the ``results.json`` that ``tools/train_net.py`` writes; NaN counts as 0.

    Raises:
        DatasetError: the file has no results of boxes.
    """
    found = _box_results(json.loads(path.read_text(encoding="utf-8")))
    if found is None or any(column not in found for column in columns):
        raise DatasetError("no results of boxes", where=str(path))
    values = {column: found[column] for column in columns}
    return {
        column: 0.0 if value is None or value != value else float(value)
        for column, value in values.items()
    }


def _box_results(results: Any) -> Mapping[str, Any] | None:
    """The part called bbox, however deep."""
    if not isinstance(results, Mapping):
        return None
    if "bbox" in results:
        found: Mapping[str, Any] = results["bbox"]
        return found
    inner = (_box_results(value) for value in results.values())
    return next((value for value in inner if value is not None), None)


def mean_and_deviation(values: Sequence[float]) -> str:
    """For example ``31.2 ± 0.8``; the deviation (of the sample) from two values on."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def markdown_table(rows: Mapping[str, Sequence[Scores]], columns: Sequence[str]) -> str:
    """A Markdown table with one line per title; ``seeds`` is the number of runs behind it."""
    lines = [f"| | {' | '.join(columns)} | seeds |", f"|---|{'---:|' * (len(columns) + 1)}"]
    for title, runs in rows.items():
        cells = [mean_and_deviation([run[column] for run in runs]) for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def plot_bars(
    rows: Mapping[str, Sequence[Scores]], columns: Sequence[str], label: str, path: Path
) -> None:
    """A bar per method and column with a dot for every seed, as PNG.

    Args:
        rows: the runs of each method.
        columns: groups of bars.
        label: of the vertical axis.
        path: where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), dpi=120)
    width = 0.8 / len(rows)
    shades = pyplot.get_cmap("viridis")
    for index, (title, runs) in enumerate(rows.items()):
        places = [place + (index - (len(rows) - 1) / 2) * width for place in range(len(columns))]
        means = [statistics.fmean(run[column] for run in runs) for column in columns]
        colour = shades(0.15 + 0.7 * index / max(1, len(rows) - 1))
        axes.bar(places, means, width * 0.92, color=colour, label=title)
        for place, column, mean in zip(places, columns, means, strict=True):
            seeds = [run[column] for run in runs]
            axes.plot([place] * len(seeds), seeds, "o", color="black", markersize=2.5)
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{mean:.1f}", (place, max(mean, *seeds)), fontsize=8, **above)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_ylabel(label)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
