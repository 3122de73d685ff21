"""Labels from captions: the rule as a plain loop, COCO's captions, Conceptual Captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from detic_ext.data.preparation.caption_tags import TagMatcher, spoken_name, tag_images
from detic_ext.data.preparation.cc3m import download_list, present_images, read_rows
from detic_ext.data.preparation.coco_captions import gather_captions, with_synonyms
from detic_ext.data.preparation.size_journal import SizeJournal
from ext_common.errors import DatasetError


def plain_tags(text: str, categories: list[dict[str, Any]]) -> list[int]:
    """The rule of the specification, word for word."""
    text = text.lower()
    return [
        category["id"]
        for category in categories
        if any(
            f" {name} " in text or text.startswith(f"{name} ") or text.endswith(f" {name}")
            for name in map(spoken_name, category["synonyms"])
            if name
        )
    ]


WORDS = st.sampled_from(["a", "b", "ab", "a b", "b a", "b_a", "A", "", " ", "a,", "a  b", "(a)"])


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=4))
def test_the_rule(words: list[str], names: list[list[str]]) -> None:
    categories = [{"id": n, "synonyms": group} for n, group in enumerate(names, start=5)]
    text = " ".join(words)

    assert TagMatcher(categories)(text) == plain_tags(text, categories)


def test_the_rule_on_lvis_names() -> None:
    categories = lvis_categories()
    matcher = TagMatcher(categories)

    for text in (
        "A man riding a wave on top of a surfboard",
        "cat and dog",
        "dog",
        "the hot-dog, a Cat.",
        "a cup of green beans near the horse carriage and a table-tennis table",
        "monitor on the table",
        "",
    ):
        assert matcher(text) == plain_tags(text, categories)
    assert matcher("a dog") != []
    assert matcher("dog") == []  # published behaviour: nothing but the name


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("aerosol_can", "aerosol can"),
        ("bow_(decorative_ribbons)", "bow"),
        ("Dutch_oven", "dutch oven"),
        ("monitor_(computer_equipment) computer_monitor", "monitor"),
        ("(x)", ""),
    ],
)
def test_spoken_names(name: str, spoken: str) -> None:
    assert spoken_name(name) == spoken


def test_tagging_needs_captions_and_synonyms() -> None:
    with pytest.raises(DatasetError, match="category 4 has no list of synonyms"):
        list(tag_images([], [{"id": 4, "name": "cat"}]))
    for captions in (None, "a cat", [1]):
        with pytest.raises(DatasetError, match="image 7 has no list of captions"):
            list(tag_images([{"id": 7, "captions": captions}], [{"id": 4, "synonyms": ["cat"]}]))


def test_an_image_without_captions_has_no_labels() -> None:
    images = [{"id": 1, "captions": []}, {"id": 2, "captions": ["a cat"]}]
    done: list[int] = []

    found = list(tag_images(images, [{"id": 4, "synonyms": ["cat"]}], progress=done.append))

    assert found == [{"id": 2, "captions": ["a cat"], "pos_category_ids": [4]}]
    assert done == [1, 2]


def test_coco_captions_of_unknown_images() -> None:
    images = [{"id": 1}, {"id": 2}]
    entries = [{"id": 9, "image_id": 1, "caption": "x"}, {"id": 8, "image_id": 3, "caption": "y"}]

    assert gather_captions({"images": images, "annotations": entries[:1]}, where="") == [
        {"id": 1, "captions": ["x"]},
        {"id": 2, "captions": []},
    ]
    with pytest.raises(DatasetError, match="1 annotations without a caption, or of an unknown .*8"):
        gather_captions({"images": images, "annotations": entries}, where="")


def test_synonyms_of_coco_classes() -> None:
    found = {c["name"]: c["synonyms"] for c in with_synonyms(coco_categories())}

    assert len(found) == 80
    assert found["handbag"] == ["handbag", "purse", "pocketbook"]
    assert found["couch"] == ["sofa", "couch", "lounge"]
    assert with_synonyms([{"id": 1, "name": "unicorn"}])[0]["synonyms"] == ["unicorn"]


def captions_file(path: Path, count: int) -> Path:
    path.write_text(
        "".join(f"a caption\u2028 {n}\thttp://host/{n}.png?x=1\n" for n in range(1, count + 1)),
        encoding="utf-8",
    )
    return path


def test_rows_and_their_images(tmp_path: Path) -> None:
    rows = read_rows(captions_file(tmp_path / "a.tsv", 5))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in ((2, (8, 5)), (4, (3, 3))):
        Image.new("RGB", size).save(folder / f"{number}.jpg")
    (folder / "5.jpg").write_text("<html>gone</html>")
    (folder / "99.jpg").write_text("no row")

    found = present_images(rows, folder, SizeJournal(tmp_path / "journal"))

    assert found.images == [
        {"id": 2, "file_name": "2.jpg", "height": 5, "width": 8, "captions": ["a caption\u2028 2"]},
        {"id": 4, "file_name": "4.jpg", "height": 3, "width": 3, "captions": ["a caption\u2028 4"]},
    ]
    assert [row.number for row in found.missing] == [1, 3]
    assert len(found.bad) == 1
    assert found.bad[0].startswith("5.jpg (not an image")
    assert download_list(found.missing) == (
        "http://host/1.png?x=1\n  out=1.jpg\nhttp://host/3.png?x=1\n  out=3.jpg\n"
    )


def test_no_images_yet(tmp_path: Path) -> None:
    rows = read_rows(captions_file(tmp_path / "a.tsv", 3))

    found = present_images(rows, tmp_path / "none", SizeJournal(tmp_path / "journal"))

    assert found.images == []
    assert found.missing == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\thttp://x\nno tab\nb\tftp://x\n\thttp://x\nc\thttp://a b\n", r"4 lines .*: 2, 3, 4, 5"),
        ("", "no captions"),
    ],
)
def test_bad_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(text)

    with pytest.raises(DatasetError, match=message):
        read_rows(tmp_path / "a.tsv")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_rows(tmp_path / "none.tsv")


def test_sizes_are_not_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "a ü.jpg"
    Image.new("RGB", (7, 4)).save(path)
    stat = path.stat()
    journal = SizeJournal(tmp_path / "sizes")
    assert journal.size(path, stat) == (4, 7)
    journal.flush()
    with (tmp_path / "sizes").open("a") as stream:
        stream.write("b.jpg\t12")  # a crash in the middle of a line

    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    again = SizeJournal(tmp_path / "sizes")
    assert len(again) == 1
    assert again.size(path, path.stat()) == (4, 7)  # not from the file

    Image.new("RGB", (9, 2)).save(path)  # another file is read
    assert again.size(path, path.stat()) == (2, 9)
    again.flush()
    assert len(SizeJournal(tmp_path / "sizes")) == 2


def test_the_journal_goes_when_its_work_is_done(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (7, 4)).save(path)

    def interrupted() -> None:
        with SizeJournal(tmp_path / "sizes") as journal:
            journal.size(path, path.stat())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(SizeJournal(tmp_path / "sizes")) == 1

    with SizeJournal(tmp_path / "sizes"):
        pass
    assert not (tmp_path / "sizes").exists()
