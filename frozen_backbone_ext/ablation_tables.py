"""The paper's ablations as tables: trained shares, object sizes, classes by their frequency (spec 6).

Shape suffixes: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ext_common.config import load_config
from ext_common.errors import ConfigError
from ext_common.evaluation.tables import cell, results_table
from ext_common.modeling.build import build_model
from frozen_backbone_ext.audit import Share, parameter_shares

Metrics = Mapping[str, float]

NECKS = ("FPN", "NASFPN", "NASFPN-Cascade")
SIZES = ("AP", "AP50", "APs", "APm", "APl", "APr", "APc", "APf")
"""Columns: objects below 32 x 32 pixels, up to 96 x 96, above; rare, common, frequent classes."""


@dataclass(frozen=True)
class Quoted:
    """A row of the paper's table for ResNet-RS-101, from a second-hand source.

    Args:
        total: million parameters.
        trained: percent of them that are trained when the backbone is frozen.
        gain: AP of frozen minus fine-tuned.
    """

    total: float
    trained: float
    gain: float


PAPER = {
    "FPN": Quoted(83.5, 26.1, -6.5),
    "NASFPN": Quoted(102.6, 39.9, +0.1),
    "NASFPN-Cascade": Quoted(132.9, 53.6, +0.7),
}


def count_detector(config_file: str | Path) -> tuple[Share, Share]:
    """Sizes of the frozen trunk and of the whole detector; no weights are made.

    Args:
        config_file: with a frozen trunk.
    """
    cfg = load_config(config_file, ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False"])
    with torch.device("meta"):
        shares = parameter_shares(build_model(cfg))
    return shares[0], shares[-1]


def parameter_table(folder: str | Path, trunk: str = "RS101") -> str:
    """Markdown: sizes and trained shares of the detectors over one trunk, frozen.

    Args:
        folder: with ``NECK_TRUNK_frozen.yaml`` (configs/frozen_backbone).
        trunk: ``RS101``, which the paper counts, ``R50``, ``R101`` or ``B7``.

    Raises:
        ConfigError: there is no such file.
    """
    lines = [
        "| detector | trunk, M | total, M | trained | paper: total, M | trained | AP gain |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for neck in NECKS:
        trunk_share, whole = count_detector(Path(folder) / f"{neck}_{trunk}_frozen.yaml")
        quoted = PAPER[neck] if trunk == "RS101" else None
        cells = [
            f"{trunk_share.total / 1e6:.1f}",
            f"{whole.total / 1e6:.1f}",
            f"{whole.trained / whole.total:.1%}",
            "" if quoted is None else f"{quoted.total}",
            "" if quoted is None else f"{quoted.trained} %",
            "" if quoted is None else f"{quoted.gain:+.1f}",
        ]
        lines.append(f"| {neck} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_table(runs: Mapping[str, Mapping[str, Metrics]], *, task: str = "bbox") -> str:
    """Markdown: AP by size of the objects (and by frequency on LVIS), and gains over the first run.

    Args:
        runs: results of an evaluator by label; the first is what the others are compared with.
        task: ``bbox`` or ``segm``.

    Raises:
        ConfigError: a run without this task.
    """
    lacking = [label for label, results in runs.items() if task not in results]
    if lacking or not runs:
        raise ConfigError(
            f"no results of {task}: {', '.join(lacking) or 'no runs'}", fix="bbox or segm"
        )
    present = [name for name in SIZES if any(name in results[task] for results in runs.values())]
    first = next(iter(runs.values()))[task]
    rows: dict[str, Mapping[str, Metrics]] = {}
    for number, (label, results) in enumerate(runs.items()):
        rows[label] = results
        if number:
            gains = {
                name: results[task].get(name, math.nan) - first.get(name, math.nan)
                for name in present
            }
            rows[f"{label}, gain"] = {task: gains}
    return results_table(rows, task=task, metrics=present)


def class_gain_table(
    reference: Metrics, other: Metrics, counts: Mapping[str, int], *, groups: int = 4
) -> str:
    """Markdown: gain of classes grouped by how many training objects they have.

    Args:
        reference, other: of one task, with ``AP-NAME`` of every class.
        counts: training objects by class name.
        groups: of about as many classes each, fewest objects first.

    Raises:
        ConfigError: no class is in all three.
    """
    gains = {
        name: other[f"AP-{name}"] - reference[f"AP-{name}"]
        for name in counts
        if f"AP-{name}" in other and f"AP-{name}" in reference
    }
    names = sorted((n for n, gain in gains.items() if not math.isnan(gain)), key=counts.__getitem__)
    if not names:
        raise ConfigError(
            "the runs have no class of the annotations in common",
            where="--annotations",
            fix="give the training annotations of the dataset that was evaluated",
        )
    lines = ["| objects per class | classes | mean gain |", "| --- | ---: | ---: |"]
    for part in _split(names, min(groups, len(names))):
        mean = sum(gains[name] for name in part) / len(part)
        lines.append(f"| {counts[part[0]]} to {counts[part[-1]]} | {len(part)} | {_signed(mean)} |")
    return "\n".join(lines)


def object_counts(content: Mapping[str, Any]) -> dict[str, int]:
    """Objects per class name in a COCO or LVIS file; crowds are not counted."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd", 0):
            counts[names[annotation["category_id"]]] += 1
    return counts


def _split(names: Sequence[str], groups: int) -> list[Sequence[str]]:
    ends = [round(len(names) * number / groups) for number in range(groups + 1)]
    return [names[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def _signed(number: float) -> str:
    return ("+" if number >= 0 else "") + cell(number)
