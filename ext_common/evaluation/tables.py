"""Evaluation results as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

_PER_CLASS_COLUMNS = 3


def format_results(results: Mapping[str, Any], *, classes: bool = True) -> str:
    """Tables of one dataset's results, or of several by name.

    Args:
        results: ``{task: {metric: percent}}`` as evaluators return it, or ``{dataset: {task: ...}}``.
        classes: with the single classes.

    Returns:
        One line per task with the overall metrics, one per task and class group, then the classes;
        "-" where a number does not exist.
    """
    if not results:
        return "no results"
    if any(_is_nested(value) for value in results.values()):
        return "\n\n".join(
            f"{name}\n{format_results(value, classes=classes)}" for name, value in results.items()
        )
    overall = [
        {"task": task} | {name: cell(number) for name, number in metrics.items() if "-" not in name}
        for task, metrics in results.items()
    ]
    parts = [_table(overall)]
    groups = [row for task, metrics in results.items() for row in _group_rows(task, metrics)]
    if groups:
        parts.append(_table(groups))
    if classes:
        parts += [_class_table(task, metrics) for task, metrics in results.items()]
    return "\n\n".join(part for part in parts if part)


def results_table(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    task: str = "bbox",
    metrics: Sequence[str] = (),
) -> str:
    """Several models side by side as a Markdown table, e.g. before and after image labels.

    Args:
        rows: results of evaluators (``{task: {metric: percent}}``) by the label of their line.
        task: which task is shown.
        metrics: columns; default AP, AP50 and all class groups that occur.
    """
    if not metrics:
        seen = dict.fromkeys(name for results in rows.values() for name in results.get(task, {}))
        metrics = [name for name in ("AP", "AP50") if name in seen]
        metrics += sorted((name for name in seen if "-group-" in name), key=_group_order)
    lines = [
        [label, *(cell(results.get(task, {}).get(metric, math.nan)) for metric in metrics)]
        for label, results in rows.items()
    ]
    headers = ["", *(metric.replace("-group-", " ") for metric in metrics)]
    return _aligned(lines, headers, "github")


def cell(number: float) -> str:
    """A metric with one decimal; "-" for NaN."""
    return "-" if math.isnan(number) else f"{number:.1f}"


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(inner, Mapping) for inner in value.values()
    )


def _group_order(metric: str) -> tuple[str, str]:
    name, group = metric.split("-group-", 1)
    return group, name


def _group_rows(task: str, metrics: Mapping[str, float]) -> list[dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for name, number in metrics.items():
        if "-group-" in name:
            metric, group = name.split("-group-", 1)
            rows.setdefault(group, {"task": task, "group": group})[metric] = cell(number)
    return list(rows.values())


def _class_table(task: str, metrics: Mapping[str, float]) -> str:
    pairs = [
        name.split("-", 1) + [cell(number)]
        for name, number in metrics.items()
        if "-" in name and "-group-" not in name
    ]
    if not pairs:
        return ""
    cells = [[name, number] for _, name, number in pairs]
    columns = min(_PER_CLASS_COLUMNS, len(cells))
    lines = [sum(cells[i : i + columns], []) for i in range(0, len(cells), columns)]
    return _aligned(lines, [f"{task} class", pairs[0][0]] * columns, "simple")


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    headers = list(dict.fromkeys(name for row in rows for name in row))
    return _aligned([[row.get(name, "") for name in headers] for row in rows], headers, "simple")


def _aligned(lines: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
    align = ["right" if _numeric_column(lines, i) else "left" for i in range(len(headers))]
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True, colalign=align)


def _numeric_column(lines: Sequence[Sequence[str]], column: int) -> bool:
    return all(
        text in ("", "-") or text.replace(".", "", 1).lstrip("-").isdigit()
        for text in (line[column] for line in lines if column < len(line))
    )
