"""OpenImages' class hierarchy: which classes lie above a class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError

HIERARCHY_FILE = "challenge-2019-label500-hierarchy.json"
"""The challenge's file name; expected beside the annotations."""


def read_hierarchy(path: str | Path) -> dict[str, Any]:
    """Nested ``{"LabelName": freebase id, "Subcategory": [...]}``.

    Raises:
        DatasetError: the file is missing or is not such a hierarchy.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"class hierarchy cannot be read: {error}",
            where=str(path),
            fix=f"download {HIERARCHY_FILE} of the OpenImages challenge",
        ) from error
    if not isinstance(content, dict) or "LabelName" not in content:
        raise DatasetError("not a class hierarchy: no LabelName", where=str(path))
    return content


def ancestors_by_id(
    hierarchy: Mapping[str, Any], id_of_label: Mapping[str, int]
) -> dict[int, tuple[int, ...]]:
    """Category ids above each category id, nearest first; labels without an id are left out.

    Args:
        hierarchy: see :func:`read_hierarchy`; a class may have several parents.
        id_of_label: category id of every freebase id.
    """
    above: dict[int, dict[int, None]] = {}
    for label, path in _paths(hierarchy, ()):
        if label in id_of_label:
            ids = (id_of_label[name] for name in path if name in id_of_label)
            above.setdefault(id_of_label[label], {}).update(dict.fromkeys(ids))
    return {key: tuple(name for name in names if name != key) for key, names in above.items()}


def _paths(
    node: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every label with the labels above it, nearest first."""
    label = node["LabelName"]
    yield label, above
    for child in node.get("Subcategory", ()):
        yield from _paths(child, (label, *above))
