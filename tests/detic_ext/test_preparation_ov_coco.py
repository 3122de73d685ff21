"""OV-COCO splits and Objects365: what stays, what is corrected, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.preparation.builtin_categories import coco_categories
from detic_ext.data.preparation.objects365 import (
    FIXED_NAMES,
    fix_names,
    only_present,
    read_name_table,
)
from detic_ext.data.preparation.ov_coco import only_classes, original_order
from ext_common.errors import DatasetError
from tests.ext_common.annotation_files import box


def coco(labels: list[tuple[int, int]], images: int = 4) -> dict[str, Any]:
    """(image, category) pairs over COCO's 80 classes."""
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "height": 9, "width": 9} for n in range(1, images + 1)],
        "annotations": [
            box(place, image, key, [0, 0, 2, 2]) for place, (image, key) in enumerate(labels, 100)
        ],
        "categories": coco_categories(),
    }


def test_a_split_has_the_images_that_show_its_classes() -> None:
    # person (base), cat (novel), traffic light (neither)
    data = coco([(1, 1), (1, 17), (2, 17), (3, 10), (1, 1)])

    base = only_classes(data, BASE_IDS, where="a")
    novel = only_classes(data, NOVEL_IDS, where="a")

    assert [image["id"] for image in base["images"]] == [1]
    assert [entry["id"] for entry in base["annotations"]] == [100, 104]
    assert tuple(category["id"] for category in base["categories"]) == BASE_IDS
    assert [image["id"] for image in novel["images"]] == [1, 2]
    assert [entry["id"] for entry in novel["annotations"]] == [101, 102]
    assert tuple(category["id"] for category in novel["categories"]) == NOVEL_IDS
    assert base["info"] == {"year": 2017}
    assert len(data["annotations"]) == 5


def test_the_original_order_gives_coco_its_classes_back() -> None:
    data = coco([(1, 1), (2, 17)])
    base = only_classes(data, BASE_IDS, where="a")

    full = original_order(base, coco_categories(), where="a")

    assert full["categories"] == coco_categories()
    assert full["annotations"] == base["annotations"]
    assert len(base["categories"]) == 48


def test_other_class_lists_are_refused() -> None:
    data = coco([(1, 1)])

    with pytest.raises(DatasetError, match=r"a: 1 category ids that the file does not have: 999"):
        only_classes(data, [1, 999], where="a")
    with pytest.raises(
        DatasetError, match=r"1 categories that are not in the full list.*1 \(person\)"
    ):
        original_order(data, [{"id": 1, "name": "human"}, *coco_categories()[1:]], where="a")


def objects365(root_names: list[str] | None = None) -> dict[str, Any]:
    names = root_names or []
    return {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names, start=1)],
        "annotations": [box(n, n, 1, [0, 0, 1, 1]) for n in range(1, len(names) + 1)],
        "categories": [{"id": n, "name": f"name {n}"} for n in range(1, 366)],
    }


def test_names_of_objects365() -> None:
    fixed, changed = fix_names(objects365(), where="a")

    names = {c["id"]: c["name"] for c in fixed["categories"]}
    assert {key: names[key] for key in FIXED_NAMES} == FIXED_NAMES
    assert len(changed) == len(FIXED_NAMES) == 13
    assert changed[0] == "38: name 38 -> Monitor/TV"
    assert sum(names[key] == f"name {key}" for key in names) == 365 - 13
    assert fix_names(fixed, where="a")[1] == []


def test_names_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text('id,old,new\n2,name 2,"Two, or so"\n365,name 365,last \n\n')
    table = read_name_table(path)
    assert table == {2: ("name 2", "Two, or so"), 365: ("name 365", "last ")}

    fixed, changed = fix_names(objects365(), table, where="a")

    assert changed == ["2: name 2 -> Two, or so", "365: name 365 -> last "]
    assert fix_names(fixed, table, where="a")[1] == []  # corrected already
    with pytest.raises(
        DatasetError, match=r"1 categories that have another name: 2 \('name 2', not"
    ):
        fix_names(objects365(), {2: ("other", "new")}, where="a")
    with pytest.raises(DatasetError, match="1 category ids that are not there: 999"):
        fix_names(objects365(), {999: ("a", "b")}, where="a")


@pytest.mark.parametrize("text", ["1,a\n", "1,a,b\nx,a,b\n", "1,a,\n"])
def test_bad_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)

    with pytest.raises(DatasetError, match=r"line \d is not 'id,old name,new name'"):
        read_name_table(tmp_path / "a.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_name_table(tmp_path / "none.csv")


def test_images_that_are_not_there_go_with_their_boxes(tmp_path: Path) -> None:
    for name in ("images/v1/p0/a.jpg", "p1/b.jpg", "c.jpg", "p0/d.jpg/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = objects365(
        ["images/v1/p0/a.jpg", "images/v2/p1/b.jpg", "images/v2/p2/c.jpg", "p0/d.jpg", "p1/e.jpg"]
    )
    steps: list[tuple[int, int]] = []

    found = only_present(data, tmp_path, where="a", progress=lambda *step: steps.append(step))

    assert [(image["id"], image["file_name"]) for image in found["images"]] == [
        (1, "images/v1/p0/a.jpg"),
        (2, "p1/b.jpg"),
        (3, "c.jpg"),
    ]
    assert [entry["image_id"] for entry in found["annotations"]] == [1, 2, 3]
    assert steps[-1] == (5, 5)


def test_a_wrong_image_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of the 1 images is there"):
        only_present(objects365(["a.jpg"]), tmp_path, where="a")
    with pytest.raises(DatasetError, match="no such folder"):
        only_present(objects365(["a.jpg"]), tmp_path / "none", where="a")
    with pytest.raises(DatasetError, match="1 images without a name inside the image folder: 2"):
        only_present(objects365(["a.jpg", "../b.jpg"]), tmp_path, where="a")
