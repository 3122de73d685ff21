"""JSON annotation files: read with errors that name the place, written whole or not at all."""

from __future__ import annotations

import json
import mmap
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from ext_common.atomic_file import replacing
from ext_common.errors import DatasetError

_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')
_FIRST_WINDOW = 1 << 20  # bytes of a list that are tried first


class _NoNumberError(ValueError):
    """JSON has no NaN and no Infinity, although Python's reader takes them."""


def read_json(path: str | Path) -> dict[str, Any]:
    """Read an annotation file whose top level is an object.

    Raises:
        DatasetError: no such file, not UTF-8, a byte-order mark, cut off or otherwise not JSON
            (with line and column), or a ``NaN`` or ``Infinity``.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except _NoNumberError as error:
        _refuse(path, text, _constant_position(text), f"{error} is not a JSON number")
    except json.JSONDecodeError as error:
        problem = error.msg
        if error.pos >= len(text.rstrip()):
            problem += "; the file looks cut off"
        _refuse(path, text, error.pos, problem)
    except RecursionError:
        raise DatasetError("nested too deeply", where=str(path)) from None
    if not isinstance(content, dict):
        raise DatasetError(
            f"the top level is a {type(content).__name__}, not an object",
            where=str(path),
            fix="use the COCO or LVIS layout",
        )
    return content


def read_categories(path: str | Path) -> list[Any]:
    """The value of ``categories`` alone, without reading the rest where that can be told apart.

    Annotation files reach gigabytes and their class list kilobytes.

    Raises:
        DatasetError: as :func:`read_json`, or there is no list of categories.
    """
    path = Path(path)
    found = _only_list(path, "categories") if path.is_file() else None
    if found is None:
        found = read_json(path).get("categories")
    if not isinstance(found, list):
        raise DatasetError(
            "no list 'categories'", where=str(path), fix="use the COCO or LVIS layout"
        )
    return found


def write_json_atomic(path: str | Path, content: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never a part.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is left as it was.
        ValueError: a number that JSON does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, allow_nan=False)


def unreadable(path: str | Path, error: OSError) -> DatasetError:
    """The error about an annotation file that is not there or cannot be opened."""
    return DatasetError(
        f"annotations cannot be read: {error.strerror}",
        where=str(path),
        fix="datasets/README.md shows where each file belongs",
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"not UTF-8 text: byte {error.start}", where=str(path)) from error
    if text.startswith("\ufeff"):
        _refuse(path, text, 0, "starts with a byte-order mark", "save as UTF-8 without BOM")
    if not text.strip():
        raise DatasetError("the file is empty", where=str(path), fix="copy or download it again")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise _NoNumberError(name)


def _constant_position(text: str) -> int:
    found = (match.start() for match in _STRING_OR_CONSTANT.finditer(text) if match.group(1))
    return next(found, 0)


def _refuse(path: Path, text: str, position: int, problem: str, fix: str = "") -> NoReturn:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    raise DatasetError(f"{problem} at line {line}, column {column}", where=str(path), fix=fix)


def _only_list(path: Path, key: str) -> list[Any] | None:
    """The list under ``key`` where that key stands once in the file; None: read it all."""
    name = f'"{key}"'.encode()
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(name)
            if start < 0 or content.find(name, start + 1) >= 0:
                return None
            head = re.compile(rb"\s*:\s*(?=\[)").match(content, start + len(name))
            if head is None:
                return None
            begin, window = head.end(), _FIRST_WINDOW
            while True:
                part = content[begin : begin + window].decode("utf-8", errors="ignore")
                try:
                    found = json.JSONDecoder().raw_decode(part)[0]
                except json.JSONDecodeError:
                    if begin + window >= len(content):
                        return None
                    window *= 4
                else:
                    return found if isinstance(found, list) else None
