"""Reading the lists of a JSON object element by element, in bounded memory.

The file is never in memory as a whole, neither as text nor as objects; the elements come from
Python's own C scanner. Results and errors are those of :func:`json_files.read_json`, except that a
key that stands twice at the top level is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ext_common.data.json_files import unreadable
from ext_common.data.json_text import TextWindow
from ext_common.errors import DatasetError

Progress = Callable[[int, int], None]
"""Called now and then with (bytes read, bytes in all)."""

_WINDOW = 1 << 22  # bytes
_NEAR_END = 16  # characters; the longest literal or escape that a window can cut
_BLANKS = re.compile(r"[ \t\n\r]*")
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')


class Element(NamedTuple):
    """One element of a list at the top level.

    Args:
        key: the list.
        value: the element.
        offset: its first byte in the file.
        raw: its bytes.
    """

    key: str
    value: Any
    offset: int
    raw: bytes


class EveryKey:
    """Contains everything: for streams that give out every list."""

    def __contains__(self, key: object) -> bool:
        return True


class _ConstantError(ValueError):
    """A NaN or Infinity."""


class JsonStream:
    """One pass over a JSON file whose top level is an object.

    Args:
        path: the file.
        wanted: keys whose lists are given out; everything else is read and dropped.
        allow_constants: take ``NaN`` and ``Infinity`` as Python's json does, and count them.
        progress: told how far it is.
        window: bytes that are read at a time.

    Attributes:
        types: type name of the value of every top-level key met so far.
        values: values at the top level that are no lists.
        constants: "NaN at line 3, column 7" of the first ones, with ``allow_constants``.
        constant_count: how many there are.
    """

    def __init__(
        self,
        path: str | Path,
        wanted: Container[str],
        *,
        allow_constants: bool = False,
        progress: Progress | None = None,
        window: int = _WINDOW,
    ) -> None:
        self.path = Path(path)
        self.types: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.constants: list[str] = []
        self.constant_count = 0
        self._wanted = wanted
        self._allow_constants = allow_constants
        self._progress = progress
        self._window = window
        self._seen_constants = 0
        self._scan = json.JSONDecoder(parse_constant=self._constant).scan_once  # type: ignore[attr-defined]

    def elements(self) -> Iterator[Element]:
        """Elements of the wanted lists, in the order of the file.

        Raises:
            DatasetError: see :func:`json_files.read_json`.
        """
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise unreadable(self.path, error) from error
        with stream:
            self._size = self.path.stat().st_size
            self._text = TextWindow(stream, self.path, size=self._window)
            yield from self._top_level()

    def _top_level(self) -> Iterator[Element]:
        text = self._text
        first = self._next_character()
        if text.text.startswith("\ufeff"):
            text.refuse("starts with a byte-order mark", 0, "save as UTF-8 without BOM")
        if not first:
            raise DatasetError(
                "the file is empty", where=str(self.path), fix="copy or download it again"
            )
        if first != "{":
            kind = "list" if first == "[" else type(self._value()).__name__
            raise DatasetError(
                f"the top level is a {kind}, not an object",
                where=str(self.path),
                fix="use the COCO or LVIS layout",
            )
        for key in self._keys():
            if key in self.types:
                text.refuse(f"the key {key!r} stands twice at the top level", text.at)
            if self._next_character() == "[":
                self.types[key] = "list"
                yield from self._list(key, given_out=key in self._wanted)
            else:
                self.values[key] = self._value()
                self.types[key] = type(self.values[key]).__name__
        if self._next_character():
            text.refuse("Extra data", text.at)

    def _keys(self) -> Iterator[str]:
        """Keys of the top level; the caller reads each value before the next is asked for."""
        text = self._text
        text.at += 1
        if self._next_character() == "}":
            text.at += 1
            return
        while True:
            if self._next_character() != '"':
                self._fail("Expecting property name enclosed in double quotes", text.at)
            key: str = self._value()
            if self._next_character() != ":":
                self._fail("Expecting ':' delimiter", text.at)
            text.at += 1
            yield key
            if not self._another("}"):
                return

    def _list(self, key: str, *, given_out: bool) -> Iterator[Element]:
        text = self._text
        text.at += 1
        if self._next_character() == "]":
            text.at += 1
            return
        while True:
            self._next_character()
            value = self._value(forget=not given_out)
            if given_out:
                start = text.at
                offset = text.byte(start)
                text.at = self._end
                yield Element(key, value, offset, text.text[start : self._end].encode())
            if not self._another("]"):
                return

    def _another(self, closing: str) -> bool:
        """Step over a comma (True) or the closing bracket (False)."""
        found = self._next_character()
        if found not in (",", closing) or not found:
            self._fail("Expecting ',' delimiter", self._text.at)
        self._text.at += 1
        return found == ","

    def _next_character(self) -> str:
        """The next character that is no blank, which ``at`` then stands on; "" at the end."""
        text = self._text
        while True:
            found = _BLANKS.match(text.text, text.at)
            text.at = found.end() if found else text.at
            if text.at < len(text.text):
                return text.text[text.at]
            if not self._more():
                return ""

    def _value(self, *, forget: bool = True) -> Any:
        """The value at ``at``; its end is kept, and is the new ``at`` with ``forget``."""
        text = self._text
        while True:
            self._seen_constants = 0
            try:
                value, end = self._scan(text.text, text.at)
            except StopIteration as error:
                problem, place = "Expecting value", error.value
            except json.JSONDecodeError as error:
                problem, place = error.msg, error.pos
            except _ConstantError as error:
                found = self._constant_places(text.at, len(text.text))
                text.refuse(f"{error} is not a JSON number", next(found, text.at))
            except RecursionError:
                raise DatasetError("nested too deeply", where=str(self.path)) from None
            else:
                # a number may go on behind the window: "1." was read as 1
                whole = not isinstance(value, int | float) or end <= len(text.text) - _NEAR_END
                if whole or text.ended:
                    self._note_constants(end)
                    self._end = end
                    if forget:
                        text.at = end
                    return value
                problem = ""
            cut = not problem or "Unterminated string" in problem
            certain = not cut and place < len(text.text) - _NEAR_END
            if (certain or not self._more()) and problem:
                self._fail(problem, place)

    def _more(self) -> bool:
        found = self._text.more()
        if self._progress is not None:
            self._progress(self._text.bytes_read, self._size)
        return found

    def _constant(self, name: str) -> float:
        if not self._allow_constants:
            raise _ConstantError(name)
        self._seen_constants += 1
        return float(name)

    def _note_constants(self, end: int) -> None:
        if not self._seen_constants:
            return
        text = self._text
        self.constant_count += self._seen_constants
        for place in self._constant_places(text.at, end):
            if len(self.constants) < 10:
                line, column = text.position(place)
                self.constants.append(f"line {line}, column {column}")

    def _constant_places(self, start: int, end: int) -> Iterator[int]:
        found = _STRING_OR_CONSTANT.finditer(self._text.text, start, end)
        return (match.start() for match in found if match.group(1))

    def _fail(self, problem: str, place: int) -> NoReturn:
        if self._text.ended and place >= len(self._text.text.rstrip()):
            problem += "; the file looks cut off"
        self._text.refuse(problem, place)
