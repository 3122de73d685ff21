"""LVIS-base, LVIS+COCO, frequency files, the merged vocabulary: rules and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from detic_ext.data.preparation.category_counts import count_categories, with_frequency
from detic_ext.data.preparation.coco_synsets import COCO_SYNSETS
from detic_ext.data.preparation.content_checks import by_synset, check_content
from detic_ext.data.preparation.lvis_base import without_rare
from detic_ext.data.preparation.lvis_coco import SAME_BOX_IOU, ious, merge_coco
from detic_ext.data.preparation.merged_vocabulary import merge_vocabularies
from ext_common.errors import DatasetError
from tests.ext_common.annotation_files import box, content

Box = tuple[int, int, int, int]
BOXES = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(0, 15)] * 2)


def lvis(annotations: list[dict[str, Any]], negative: list[int] | None = None) -> dict[str, Any]:
    """One image (id 1) of LVIS's first classes: cat 1, dog 2, cow 3."""
    return {
        "images": [{"id": 1, "height": 40, "width": 40, "neg_category_ids": negative or []}],
        "annotations": annotations,
        "categories": [
            {"id": 1, "name": "cat", "synset": "cat.n.01", "frequency": "f"},
            {"id": 2, "name": "dog", "synset": "dog.n.01", "frequency": "c"},
            {"id": 3, "name": "cow", "synset": "beef.n.01", "frequency": "r"},
        ],
    }


def coco(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"images": [{"id": 1}], "annotations": annotations, "categories": coco_categories()}


def test_every_coco_class_is_an_lvis_class() -> None:
    lvis_ids = by_synset(lvis_categories(), where="LVIS")
    names = {c["id"]: c["name"] for c in lvis_categories()}

    assert list(COCO_SYNSETS) == [c["id"] for c in coco_categories()]
    assert len(set(COCO_SYNSETS.values())) == 80
    found = {c["name"]: names[lvis_ids[COCO_SYNSETS[c["id"]]]] for c in coco_categories()}
    # where COCO's name is that of an LVIS class or the start of one with a note, it is that class
    for name, lvis_name in found.items():
        plain = [n for n in names.values() if n.replace("_", " ") == name]
        assert plain in ([], [lvis_name])
    assert found["hot dog"] == "sausage"
    assert found["potted plant"] == "flowerpot"
    assert found["mouse"] == "mouse_(computer_equipment)"
    assert found["tie"] == "necktie"


def plain_iou(first: Box, second: Box) -> float:
    """Counts unit cells."""

    def cells(one: Box) -> set[tuple[int, int]]:
        x, y, w, h = one
        return {(a, b) for a in range(x, x + w) for b in range(y, y + h)}

    union = cells(first) | cells(second)
    return len(cells(first) & cells(second)) / len(union) if union else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(BOXES, max_size=4), st.lists(BOXES, max_size=4))
def test_ious_count_cells(first: list[Box], second: list[Box]) -> None:
    def array(boxes: list[Box]) -> NDArray[np.float64]:
        return np.array(boxes, dtype=np.float64).reshape(-1, 4)

    found = ious(array(first), array(second))

    assert found.shape == (len(first), len(second))
    for row, one in enumerate(first):
        for column, other in enumerate(second):
            assert found[row, column] == pytest.approx(plain_iou(one, other))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(BOXES, st.integers(1, 3)), max_size=5),
    st.lists(st.tuples(BOXES, st.sampled_from([17, 18, 21, 44])), max_size=5),
    st.lists(st.integers(1, 3), max_size=2, unique=True),
)
def test_merging_by_the_rule(
    own: list[tuple[Box, int]], others: list[tuple[Box, int]], negative: list[int]
) -> None:
    lvis_of = {17: 1, 18: 2, 21: 3}
    expected = [(list(one), key) for one, key in own]
    for one, coco_id in others:
        key = lvis_of.get(coco_id)
        if key is None or key in negative:
            continue
        if not any(plain_iou(one, b) >= SAME_BOX_IOU and key == k for b, k in own):
            expected.append((list(one), key))

    merged = merge_coco(
        lvis([box(n, 1, key, list(one)) for n, (one, key) in enumerate(own)], negative),
        coco([box(n, 1, key, list(one)) for n, (one, key) in enumerate(others, 500)]),
        where="a",
        coco_where="b",
    )

    found = merged["annotations"]
    assert [(entry["bbox"], entry["category_id"]) for entry in found] == expected
    assert [entry["id"] for entry in found] == list(range(1, len(expected) + 1))


def test_merging_keeps_crowds_marked_and_counts_what_has_no_class(
    caplog: pytest.LogCaptureFixture,
) -> None:
    crowd = {**box(9, 1, 17, [1, 1, 5, 5]), "iscrowd": 1}
    steps: list[tuple[int, int]] = []

    merged = merge_coco(
        lvis([]),
        coco([crowd, box(10, 1, 44, [0, 0, 2, 2]), box(11, 77, 17, [0, 0, 2, 2])]),
        where="a",
        coco_where="coco.json",
        progress=lambda *step: steps.append(step),
    )

    assert merged["annotations"] == [{**crowd, "id": 1, "category_id": 1}]
    assert "coco.json: 1 annotations have no LVIS class" in caplog.text
    assert steps == [(1, 1)]


def test_the_input_is_not_changed() -> None:
    own, others = lvis([box(5, 1, 3, [0, 0, 9, 9])]), coco([box(5, 1, 17, [1, 1, 5, 5])])

    without_rare(own, where="a")
    merge_coco(own, others, where="a", coco_where="b")

    assert own == lvis([box(5, 1, 3, [0, 0, 9, 9])])
    assert others == coco([box(5, 1, 17, [1, 1, 5, 5])])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda c: c.pop("annotations"), "no list 'annotations'"),
        (lambda c: c.update(annotations=[{"id": 1}]), "objects with image_id, category_id, bbox"),
        (
            lambda c: c.update(categories=[{"id": 1, "name": "cat"}]),
            "1 categories without 'synset'",
        ),
        (lambda c: c["categories"].append(c["categories"][0]), "synsets given twice: cat.n.01"),
        (
            lambda c: c.update(images=["a"]),
            "entries of 'images' that are not objects with id, at: 0",
        ),
    ],
)
def test_merging_bad_content(broken: Callable[[dict[str, Any]], Any], message: str) -> None:
    own = lvis([])
    broken(own)

    with pytest.raises(DatasetError, match=message):
        merge_coco(own, coco([]), where="a.json", coco_where="b.json")


def test_rare_needs_frequencies() -> None:
    with pytest.raises(DatasetError, match="3 categories without 'frequency'"):
        without_rare(content([(4, 4)]), where="a.json")


def test_counting_image_labels() -> None:
    data = content([(4, 4), (4, 4), (4, 4)])
    for image, labels in zip(data["images"], ([10, 12], [12], []), strict=True):
        image["pos_category_ids"] = labels

    found = count_categories(data, where="a")

    assert [(c["image_count"], c["instance_count"]) for c in found] == [(1, 1), (0, 0), (2, 2)]
    assert [c["name"] for c in found] == ["cat", "dog", "owl"]


def test_counting_images_and_objects() -> None:
    data = content(
        [(9, 9), (9, 9)],
        [box(1, 1, 10, [0, 0, 2, 2]), box(2, 1, 10, [0, 0, 3, 3]), box(3, 2, 10, [1, 1, 2, 2])],
    )

    found = count_categories(data, where="a")

    assert [(c["image_count"], c["instance_count"]) for c in found] == [(2, 3), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("images", "frequency"), [(0, "r"), (9, "r"), (10, "c"), (99, "c"), (100, "f"), (9999, "f")]
)
def test_frequencies(images: int, frequency: str) -> None:
    assert with_frequency([{"image_count": images}]) == [
        {"image_count": images, "frequency": frequency}
    ]
    with pytest.raises(DatasetError, match="thresholds 5 and 2"):
        with_frequency([], rare_below=5, common_below=2)


def category(key: int, name: str, synset: str) -> dict[str, Any]:
    return {"id": key, "name": name, "synset": synset}


def test_merging_vocabularies() -> None:
    first = [category(2, "cat", "cat.n.01"), category(5, "Crane", "crane.n.04")]
    second = [
        category(1, "tom", "cat.n.01"),  # by synset
        category(2, "crane", "crane.n.05"),  # neither: case counts
        category(3, "Crane", "crane.n.09"),  # by name
        category(7, "owl", "owl.n.01"),
        category(8, "cat", "cat.n.05"),  # a second one that is the first class
    ]

    merged = merge_vocabularies(first, second, where="a", second_where="b")
    images = [
        {"id": 1, "pos_category_ids": [7, 1]},
        {"id": 2, "pos_category_ids": [1, 8]},
        {"id": 3},
    ]

    assert list(merged.categories) == [
        *first,
        category(6, "crane", "crane.n.05"),
        category(7, "owl", "owl.n.01"),
    ]
    assert [image["pos_category_ids"] for image in merged.relabelled(images, where="b")] == [
        [7, 2],
        [2],
        [],
    ]
    with pytest.raises(DatasetError, match="b: image 9 has label 44, which is not in 'categories'"):
        list(merged.relabelled([{"id": 9, "pos_category_ids": [44]}], where="b"))


def test_the_whole_lvis_vocabulary_comes_first() -> None:
    known = lvis_categories()
    new = [category(n, f"new{n}", f"new.n.{n}") for n in range(1, 4)]

    merged = merge_vocabularies(known, new, where="a", second_where="b")

    assert list(merged.categories[:1203]) == known
    assert [c["id"] for c in merged.categories[1203:]] == [1204, 1205, 1206]


def test_vocabularies_need_synsets() -> None:
    with pytest.raises(DatasetError, match="b: 1 categories without 'synset'"):
        merge_vocabularies(
            [category(1, "a", "a.n.01")], [{"id": 1, "name": "a"}], where="a", second_where="b"
        )


def test_written_content_is_checked_as_the_loader_does() -> None:
    good = content([(9, 9)], [box(1, 1, 10, [0, 0, 2, 2])])
    check_content(good, where="a")

    for broken in (
        {**good, "annotations": [box(1, 1, 99, [0, 0, 2, 2])]},
        {**good, "images": good["images"] * 2},
        {**good, "categories": []},
    ):
        with pytest.raises(DatasetError, match="^a: "):
            check_content(broken, where="a")
