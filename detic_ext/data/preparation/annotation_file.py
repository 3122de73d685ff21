"""Writing annotation files of any size: entry by entry, under the final name when complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ext_common.atomic_file import replacing


def write_annotations(path: str | Path, content: Mapping[str, Any] | list[Any]) -> dict[str, int]:
    """Write an annotation file, or a list of categories, with one entry a line.

    Args:
        path: the file; its folder is made if it is missing.
        content: lists and iterators in it are written entry by entry, so that an iterator's entries
            need not be in memory together.

    Returns:
        How many entries each list had; "" for a list of categories.

    Raises:
        OSError: the folder cannot be written, or the disk is full; an older file stays.
        ValueError: a number that JSON does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for part in _parts(content, counts):
            stream.write(part)
    return counts


def _parts(content: Mapping[str, Any] | list[Any], counts: dict[str, int]) -> Iterator[str]:
    # json.dump() takes the slow way through Python for every number; this does so once an entry
    encode = json.JSONEncoder(allow_nan=False).encode
    if not isinstance(content, Mapping):
        yield from _list_parts("", iter(content), counts)
        return
    yield "{"
    for number, (key, value) in enumerate(content.items()):
        yield f"{',' if number else ''}\n{encode(key)}: "
        if isinstance(value, list | Iterator):
            yield from _list_parts(key, iter(value), counts)
        else:
            yield encode(value)
    yield "\n}\n"


def _list_parts(key: str, entries: Iterator[Any], counts: dict[str, int]) -> Iterator[str]:
    encode = json.JSONEncoder(allow_nan=False).encode
    counts[key] = 0
    yield "["
    for entry in entries:
        yield f"{',' if counts[key] else ''}\n{encode(entry)}"
        counts[key] += 1
    yield "]"
