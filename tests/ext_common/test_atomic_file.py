"""Files that are complete or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ext_common.atomic_file import remove_leftovers, replacing, write_bytes, writing


def test_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "höhe\n.json"
    for content in (b"one", b"another"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == [path.name]


def test_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["r.json"]


def test_reader_sees_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_permissions_are_the_ordinary_ones(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "r.json", b"")
    assert (tmp_path / "r.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "none" / "r.json", b"")


def test_stream_shows_nothing_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with writing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"

    def interrupted() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-mine.txt").touch()
    (tmp_path / "kept.pth").touch()
    with replacing(tmp_path / "a.pth") as temporary:
        left = tmp_path / f".writing-{'0' * 32}.pth"
        temporary.rename(left)
        temporary.touch()
        assert remove_leftovers(tmp_path, older_than=3600.0) == []
    assert remove_leftovers(tmp_path) == [left]
    assert sorted(os.listdir(tmp_path)) == [".writing-mine.txt", "a.pth", "kept.pth"]
    assert remove_leftovers(tmp_path / "none") == []
