"""The streaming reader against the plain one: same elements, same errors, whatever the window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ext_common.data.json_files import read_json
from ext_common.data.json_stream import JsonStream
from ext_common.errors import DatasetError

LISTS = ("images", "annotations")
DOCUMENT = {
    "info": {"nested": [1, 2, {"deep": None}]},
    "images": [
        {"id": 1, "name": 'ä"\\ü\n.png', "numbers": [1.5, -2e10, True]},
        3,
        12345,
        "é",
        [[]],
        {},
    ],
    "licenses": [{"id": 1}, 2],
    "annotations": [],
    "number": 17,
    "日本": ["\u2028", "😀"],
}


def plain(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        return read_json(path), ""
    except DatasetError as error:
        return None, str(error)


def streamed(path: Path, window: int) -> tuple[dict[str, Any] | None, str]:
    """The wanted lists, after a look at where their elements lie."""
    stream = JsonStream(path, LISTS, window=window)
    content = path.read_bytes()
    found: dict[str, Any] = {}
    try:
        for element in stream.elements():
            assert content[element.offset : element.offset + len(element.raw)] == element.raw
            assert json.loads(element.raw) == element.value
            found.setdefault(element.key, []).append(element.value)
    except DatasetError as error:
        return None, str(error)
    return {key: found.get(key, []) for key in LISTS if stream.types.get(key) == "list"}, ""


def texts() -> list[bytes]:
    return [
        json.dumps(DOCUMENT, ensure_ascii=ascii_only, indent=indent).encode()
        for ascii_only in (True, False)
        for indent in (None, 1)
    ]


@pytest.mark.parametrize("text", texts(), ids=["ascii", "ascii-lines", "utf8", "utf8-lines"])
@pytest.mark.parametrize("window", [1, 3, 7, 64, 1 << 20])
def test_elements_are_those_of_the_plain_reader(tmp_path: Path, text: bytes, window: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    found, error = streamed(path, window)
    assert error == ""
    assert found == {key: DOCUMENT[key] for key in LISTS}


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_a_file_that_is_cut_off_anywhere_gives_the_same_error(tmp_path: Path, window: int) -> None:
    path = tmp_path / "a.json"
    (_, _, _, text) = texts()
    for end in range(len(text)):
        path.write_bytes(text[:end])
        content, expected = plain(path)
        assert streamed(path, window) == (None, expected)
        assert content is None


@given(
    place=st.integers(0, 10_000),
    byte=st.sampled_from(list(b'{}[],:"\\ \n0aN-\xff\xc3')),
    window=st.sampled_from([1, 5, 1 << 20]),
    text=st.sampled_from(texts()),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_gives_the_same_error(
    tmp_path: Path, place: int, byte: int, window: int, text: bytes
) -> None:
    path = tmp_path / "a.json"
    damaged = bytearray(text)
    damaged[place % len(text)] = byte
    path.write_bytes(damaged)
    content, expected = plain(path)
    found, error = streamed(path, window)
    if "top level is" in error:
        return  # told before the rest is read
    assert error == expected
    if content is not None:
        assert found == {key: content[key] for key in LISTS if isinstance(content.get(key), list)}


def test_a_number_that_a_window_cuts_is_one_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [123456789, 1.5e10, -7]}')
    for window in range(1, 30):
        assert streamed(path, window)[0] == {"images": [123456789, 1.5e10, -7]}


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [1],\n "images": [2]}')
    found, error = streamed(path, 1 << 20)
    assert found is None
    assert "'images' stands twice at the top level at line 2" in error


def test_missing_files_and_other_types_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        list(JsonStream(tmp_path / "none.json", LISTS).elements())
    path = tmp_path / "a.json"
    path.write_text('{"images": {"a": 1}, "annotations": null, "n": 3}')
    stream = JsonStream(path, LISTS)
    assert list(stream.elements()) == []
    assert stream.types == {"images": "dict", "annotations": "NoneType", "n": "int"}


def test_constants_can_be_counted_instead(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"a": "NaN"},\n {"b": [1, NaN, -Infinity]}], "x": Infinity}')
    with pytest.raises(DatasetError, match="NaN is not a JSON number at line 2, column 12"):
        list(JsonStream(path, LISTS).elements())
    for window in (1, 1 << 20):
        stream = JsonStream(path, LISTS, allow_constants=True, window=window)
        values = [element.value for element in stream.elements()]
        assert str(values) == "[{'a': 'NaN'}, {'b': [1, nan, -inf]}]"
        assert stream.constant_count == 3
        assert stream.constants == [f"line 2, column {column}" for column in (12, 17, 36)]


def test_progress_is_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(texts()[0])
    told: list[tuple[int, int]] = []
    list(JsonStream(path, LISTS, window=50, progress=lambda *at: told.append(at)).elements())
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == len(texts()[0])
    assert {total for _, total in told} == {len(texts()[0])}
