"""A plot of lines over a quantity, with a dot for every seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        title: in the legend.
        points: place on the horizontal axis -> values of the seeds; the line joins the means.
    """

    title: str
    points: Mapping[float, Sequence[float]]


def plot_lines(lines: Sequence[Line], across: str, up: str, path: Path) -> None:
    """Draw lines as PNG.

    Args:
        lines: one or more.
        across, up: labels of the axes; the horizontal one is logarithmic.
        path: where to.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.0, 3.6), dpi=120)
    shades = pyplot.get_cmap("viridis")
    for number, line in enumerate(lines):
        places = sorted(line.points)
        colour = shades(0.15 + 0.7 * number / max(1, len(lines) - 1))
        means = [statistics.fmean(line.points[place]) for place in places]
        axes.plot(places, means, color=colour, label=line.title)
        for place in places:
            values = list(line.points[place])
            axes.plot([place] * len(values), values, "o", color=colour, markersize=3)
    marks = sorted({place for line in lines for place in line.points})
    axes.set_xscale("log")
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
