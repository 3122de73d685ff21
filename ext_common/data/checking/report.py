"""What a check found, as text."""

from __future__ import annotations

from ext_common.data.checking.annotation_file import CheckedAnnotations
from ext_common.data.findings import Findings
from ext_common.images import printable

_WIDTH = 160  # of a line with cases


def summary(name: str, checked: CheckedAnnotations) -> str:
    """One line: how much there is, and how classes are numbered."""
    ids = list(checked.classes)
    counts = f"{len(checked.images):,} images, {len(checked.annotations):,}"
    if not ids:
        return f"{printable(name)}: {counts} captions"
    gaps = " with gaps" if ids[-1] - ids[0] + 1 != len(ids) else ""
    return (
        f"{printable(name)}: {counts} annotations, {len(checked.images.labels_L):,} image labels, "
        f"{len(ids):,} classes (category ids {ids[0]}..{ids[-1]}{gaps} become 0..{len(ids) - 1})"
    )


def class_mapping(checked: CheckedAnnotations) -> list[str]:
    """One line per class: category id, contiguous index, name."""
    pairs = zip(checked.classes.items(), checked.class_names, strict=True)
    return [f"{key:>8} -> {index:<6} {printable(name)}" for (key, index), name in pairs]


def table(findings: Findings) -> list[str]:
    """A line per kind of problem, and below it the first cases."""
    found = findings.kinds("error") + findings.kinds("warning")
    if not found:
        return ["no problems"]
    width = max(len(kind.key) for kind in found)
    lines = []
    for kind in found:
        count = findings.counts[kind]
        lines.append(f"{kind.severity:7}  {kind.key:{width}}  {count:>9,}  {kind.what}")
        names = printable(findings.first([kind]))
        shown = names if len(names) <= _WIDTH else f"{names[: _WIDTH - 4]} ..."
        lines.append(f"{'':7}  {'':{width}}  {'':>9}  {shown}")
    return lines
