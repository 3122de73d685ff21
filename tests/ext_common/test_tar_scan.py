"""Indices of tar archives against Python's tarfile; archives that are odd, damaged or hostile."""

from __future__ import annotations

import bz2
import gzip
import logging
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common import tar_index_file
from ext_common.errors import DatasetError
from ext_common.tar_archive import TarArchive
from ext_common.tar_index_file import index_path, kept_index, open_index
from ext_common.tar_scan import scan_tar
from tests.ext_common.tar_files import add, write_tar

LONG = "a" * 90 + "/" + "b" * 150 + "/" + "ü" * 200 + ".jpg"


def contents(path: Path) -> dict[str, bytes]:
    archive = TarArchive(path)
    return {name: archive.read(number) for number, name in enumerate(archive.names)}


def by_tarfile(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                found[member.name] = stream.read()
        return found


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_length_and_contents_of_any_length(tmp_path: Path, kind: int) -> None:
    members = {
        "a.jpg": b"",
        LONG: b"x" * 513,
        "b c\n\t.jpg": b"y" * 512,
        "c" * 100: b"z",
        "d" * 101: b"z" * 2000,
        "\udcff.jpg": b"not UTF-8",
    }
    path = write_tar(tmp_path / "a.tar", members, kind)

    assert contents(path) == members == by_tarfile(path)
    assert scan_tar(path).names[1] == LONG


def test_ustar_prefixes(tmp_path: Path) -> None:
    members = {"p" * 120 + "/" + "n" * 80: b"1", "plain": b"2"}
    path = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)

    assert contents(path) == members


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_characters="/\0\\:", exclude_categories=["Cs"]), min_size=1
            )
            .filter(lambda text: not text.startswith("."))
            .map(lambda text: text * 40),
            st.binary(max_size=1100),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda pair: pair[0],
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_agrees_with_tarfile(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], kind: int
) -> None:
    path = write_tar(tmp_path_factory.mktemp("tars") / "a.tar", dict(members), kind)

    assert contents(path) == by_tarfile(path)


def test_global_pax_headers_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(
        path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "ü"}
    ) as archive:
        folder = tarfile.TarInfo("./n01")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        add(archive, "./n01/./a.jpg", b"1")

    assert contents(path) == {"n01/a.jpg": b"1"}


def test_a_size_beyond_8_gigabytes_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    size = 9 << 30
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("large")
        info.size = size
        header = info.tobuf(tarfile.GNU_FORMAT)
        archive.fileobj.write(header)  # type: ignore[union-attr]
    os.truncate(path, 512 + size)  # sparse: takes no space
    with path.open("ab") as stream:
        info = tarfile.TarInfo("small")
        info.size = 3
        stream.write(info.tobuf() + b"abc" + b"\0" * 509 + b"\0" * 1024)

    index = scan_tar(path)

    assert index.sizes_M.tolist() == [size, 3]
    assert TarArchive(path, index).read(1) == b"abc"


def test_no_members(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = scan_tar(write_tar(tmp_path / "a.tar", {}))

    assert len(index) == 0
    assert index.cut_at is None
    assert "no files" in caplog.text


def test_the_last_of_equal_names_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "a", b"first")
        add(archive, "b", b"other")
        add(archive, "./a", b"last")

    assert contents(path) == {"b": b"other", "a": b"last"}
    assert "1 names stand more than once, the last counts: a" in caplog.text


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "not a file"),
        (tarfile.CHRTYPE, "not a file"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, what: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "a", b"1")
        info = tarfile.TarInfo("strange")
        info.type = kind
        info.linkname = "/etc/passwd"
        archive.addfile(info)

    with pytest.raises(DatasetError, match=rf"1 members that are refused: strange \({what}"):
        scan_tar(path)


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "b/../../a.jpg", "C:\\a.jpg", "..\\a"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="a name that leaves the folder"):
        scan_tar(write_tar(tmp_path / "a.tar", {"good": b"", name: b"1"}))


@pytest.mark.parametrize("lost", [1, 600, 1024, 1400, 1536 + 200, 2560])
def test_what_comes_before_a_cut_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: int
) -> None:
    members = {f"{number}.jpg": bytes([number]) * 700 for number in range(5)}
    path = write_tar(tmp_path / "a.tar", members)
    length = 5 * 1536 - lost  # a header and two blocks of content each
    os.truncate(path, length)

    index = scan_tar(path)

    whole = sum(number * 1536 + 512 + 700 <= length for number in range(5))
    assert list(index.names) == list(members)[:whole]
    assert contents(path) == {name: members[name] for name in index.names}
    assert index.cut_at is not None
    assert f"cut off at byte {index.cut_at}; the {whole} files before it are used" in caplog.text
    assert index.cut_at <= length


def test_a_cut_between_two_members_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    os.truncate(path, 1024)

    assert list(scan_tar(path).names) == ["a"]
    assert "cut off at byte 1024" in caplog.text


def test_something_behind_the_end_mark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1"})
    path.write_bytes(path.read_bytes() * 2)  # as by `cat a.tar a.tar`

    assert len(scan_tar(path)) == 1
    assert "behind the end mark at byte 1024 is not read" in caplog.text


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    with path.open("r+b") as stream:
        stream.seek(1024 + 3)
        stream.write(b"?")

    with pytest.raises(DatasetError, match=r"damaged header at byte 1024, after 1 members.*again"):
        scan_tar(path)


@pytest.mark.parametrize(
    "extra", [b"17 path=a\n", b"xx path=a\n", b"9 path\n\n\n", b"12 size=-3x\n"]
)
def test_damaged_pax_records_are_an_error(tmp_path: Path, extra: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = len(extra)
    member = tarfile.TarInfo("a")
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf() + extra.ljust(512, b"\0") + member.tobuf() + b"\0" * 1024)

    with pytest.raises(DatasetError, match="damaged header at byte|not a tar"):
        scan_tar(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a tar archive"),
        (b"hello" * 1000, "not a tar archive"),
        (gzip.compress(b"x" * 5000), "compressed as a whole.*gunzip"),
        (bz2.compress(b"x" * 5000), "compressed as a whole.*bunzip2"),
    ],
    # the bytes of a gzip stream hold the time: as an id they differ from worker to worker
    ids=["empty", "short", "text", "gzip", "bzip2"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=message):
        scan_tar(path)


def test_missing_archives_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path):
        with pytest.raises(DatasetError, match="no such file"):
            open_index(path)


def test_the_index_is_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", LONG: b"22"})
    made = open_index(path)
    assert index_path(path) == tmp_path / "a.tar.index"

    monkeypatch.setattr(tar_index_file, "scan_tar", None)  # must not be called
    kept = open_index(path)

    assert list(kept.names) == list(made.names) == ["a", LONG]
    assert kept.names[-1] == LONG
    assert kept.names[0:2] == ["a", LONG]
    assert kept.by_name[LONG] == 1
    assert kept.data_M.tolist() == made.data_M.tolist()
    assert kept.sizes_M.tolist() == [1, 2]
    assert kept.state == made.state


def test_the_index_in_another_folder(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tars" / "a.tar", {"a": b"1"})

    open_index(path, tmp_path / "new" / "indices")

    assert [p.name for p in (tmp_path / "new" / "indices").iterdir()] == ["a.tar.index"]
    assert [p.name for p in (tmp_path / "tars").iterdir()] == ["a.tar"]


@pytest.mark.parametrize("change", ["size", "mtime", "names", "touched"])
def test_an_index_of_another_state_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    open_index(path)
    before = path.stat()
    new = {"a": b"1", "b": b"2"}
    if change == "size":
        new["c"] = b"3" * 10_000
    elif change == "mtime":
        new = {"c": b"1", "d": b"2"}
    elif change == "names":
        new = {"a": b"1", "d": b"2"}
    write_tar(path, new)
    same_time = change in ("names",)
    stamp = before.st_mtime_ns if same_time else before.st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))

    with caplog.at_level(logging.WARNING):
        index = open_index(path)

    assert list(index.names) == list(new)
    assert contents(path) == new
    assert "another state" in caplog.text
    assert kept_index(path) is not None


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_index_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    open_index(path)
    file = index_path(path)
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-20] ^= 1
    file.write_bytes({"cut": content[:-5], "flip": content, "text": b"hello", "empty": b""}[damage])

    assert contents(path) == {"a": b"1", "b": b"2"}
    assert "is damaged and not used" in caplog.text
    caplog.clear()
    assert contents(path) == {"a": b"1", "b": b"2"}
    assert not caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1"})
    (tmp_path / "file").write_text("in the way")

    index = open_index(path, tmp_path / "file" / "indices")

    assert list(index.names) == ["a"]
    assert "cannot be written" in caplog.text


def test_progress_and_rebuilding(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a": b"1", "b": b"2"})
    seen: list[tuple[int, int]] = []

    open_index(path, progress=lambda *step: seen.append(step))
    open_index(path, progress=lambda *step: seen.append(step))
    assert seen == [(1024, path.stat().st_size), (2048, path.stat().st_size)]

    open_index(path, rebuild=True, progress=lambda *step: seen.append(step))
    assert len(seen) == 4
