"""Tables and plots of benchmarks/claims/frozen.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.claims.frozen_runs import (
    ALL,
    CASCADE,
    FINETUNED,
    FPN,
    FROZEN,
    METHODS,
    NECKS,
    DetectorRun,
)
from benchmarks.claims.line_plot import Line, plot_lines
from benchmarks.claims.table import BOX_COLUMNS, Scores, markdown_table, plot_bars, read_box_scores

Results = Mapping[DetectorRun, Sequence[Scores]]
"""Scores of every run, seed by seed."""


def write_report(
    folder: Path,
    files: Mapping[DetectorRun, Sequence[Path]],
    classified: Sequence[Path],
    *,
    scenes: int,
) -> str:
    """Write ``table.md``, ``methods.png`` and ``fraction.png``; returns the tables.

    Args:
        folder: where to.
        files: ``results.json`` of every run, seed by seed.
        classified: accuracies of the classifications, seed by seed.
        scenes: in the whole detection set.
    """
    results = {run: [read_box_scores(path) for path in paths] for run, paths in files.items()}
    parts = [
        accuracy_line([json.loads(path.read_text(encoding="utf-8")) for path in classified]),
        markdown_table(_rows_by_neck(results, BOX_COLUMNS), _by_neck(BOX_COLUMNS)),
        markdown_table(_rows_by_data(results), BOX_COLUMNS),
        markdown_table(gains(results), BOX_COLUMNS),
    ]
    tables = "\n\n".join(parts)
    (folder / "table.md").write_text(tables + "\n", encoding="utf-8")
    plain = {
        title: [
            {column.removesuffix(" AP"): value for column, value in run.items()} for run in runs
        ]
        for title, runs in _rows_by_neck(results, ("AP",)).items()
    }
    plot_bars(plain, [neck.title for neck in NECKS], "box AP", folder / "methods.png")
    plot_lines(_lines(results, scenes), "scenes to train on", "box AP", folder / "fraction.png")
    return tables


def accuracy_line(found: Sequence[Mapping[str, float]]) -> str:
    """How good the classifications are."""
    values = ", ".join(f"{one['accuracy']:.1f}" for one in found)
    return f"Classification of {found[0]['classes']} classes, percent right per seed: {values}"


def gains(results: Results) -> dict[str, list[Scores]]:
    """What frozen has over fine-tuned at the same seed, for every setting that has both."""
    rows = {}
    for run, frozen in results.items():
        twin = DetectorRun(run.neck, FINETUNED, run.percent, run.paste)
        if run.method == FROZEN and twin in results:
            rows[f"frozen - fine-tuned, {_setting(run)}"] = [
                {column: one[column] - other[column] for column in one}
                for one, other in zip(frozen, results[twin], strict=True)
            ]
    return rows


def _setting(run: DetectorRun) -> str:
    less = "" if run.percent == ALL else f", {run.percent} % of the scenes"
    return f"{run.neck.title}{less}{', Copy-Paste' if run.paste else ''}"


def _by_neck(columns: Sequence[str]) -> list[str]:
    return [f"{neck.title} {column}" for neck in NECKS for column in columns]


def _rows_by_neck(results: Results, columns: Sequence[str]) -> dict[str, list[Scores]]:
    """A row per method; its columns are those of every neck."""
    rows: dict[str, list[Scores]] = {}
    for method in METHODS:
        pairs = zip(*(results[DetectorRun(neck, method)] for neck in NECKS), strict=True)
        rows[method.title] = [
            {f"{n.title} {c}": s[c] for n, s in zip(NECKS, pair, strict=True) for c in columns}
            for pair in pairs
        ]
    return rows


def _rows_by_data(results: Results) -> dict[str, Sequence[Scores]]:
    """The runs of the larger detector with all scenes, fewer, and Copy-Paste."""
    runs = [run for run in results if run.neck == CASCADE and run.method in (FINETUNED, FROZEN)]
    runs.sort(key=lambda run: (run.paste, run.percent))
    return {f"{run.method.title}, {_setting(run)}": results[run] for run in runs}


def _lines(results: Results, scenes: int) -> list[Line]:
    """AP against scenes for every neck and method that was trained on different numbers."""
    lines = []
    for neck in (FPN, CASCADE):
        for method in (FINETUNED, FROZEN):
            points = {
                scenes * run.percent / 100: [one["AP"] for one in found]
                for run, found in results.items()
                if run.neck == neck and run.method == method and not run.paste
            }
            if len(points) > 1:
                lines.append(Line(f"{method.title}, {neck.title}", points))
    return lines
