from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from detectron2.structures import BoxMode

from ext_common.data.json_files import read_categories, read_json, write_json_atomic
from ext_common.data.lvis_json import (
    LoadOptions,
    dataset_dicts,
    images_per_class,
    load_lvis_json,
)
from ext_common.errors import DatasetError
from tests.ext_common.annotation_files import box, content, write
from tests.golden_cases import golden_root


def golden() -> dict[str, Any]:
    return json.loads((golden_root() / "detic" / "data_tools.json").read_text())


@pytest.mark.golden
def test_golden_loader(tmp_path: Path) -> None:
    case = golden()
    path = write(tmp_path / "in.json", case["loader_in"])
    assert load_lvis_json(path, case["loader_root"]) == case["loader_out"]


@pytest.mark.golden
def test_golden_image_counts() -> None:
    case = golden()
    counts = images_per_class(case["lvis_in"], "lvis_in")
    assert counts == [
        {"id": entry["id"], "image_count": entry["image_count"]} for entry in case["cat_info_out"]
    ]


def test_counts_are_of_images_not_of_boxes_and_of_labels_without_boxes() -> None:
    data = content(
        [(9, 9), (9, 9)],
        [box(1, 1, 10, [0, 0, 2, 2]), box(2, 1, 10, [1, 1, 2, 2]), box(3, 2, 12, [0, 0, 2, 2])],
    )
    assert [entry["image_count"] for entry in images_per_class(data, "x")] == [1, 0, 1]
    labels = content([(9, 9), (9, 9)])
    labels["images"][0]["pos_category_ids"] = [11, 12]
    labels["images"][1]["pos_category_ids"] = [12]
    assert [entry["image_count"] for entry in images_per_class(labels, "x")] == [0, 1, 2]


def test_ids_become_contiguous_by_sorted_id_and_labels_follow(tmp_path: Path) -> None:
    data = content([(8, 9)], [box(5, 1, 12, [1, 2, 3, 4])])
    data["categories"].reverse()
    data["images"][0].update(pos_category_ids=[12, 10], neg_category_ids=[11], captions=["an owl"])
    (record,) = load_lvis_json(write(tmp_path / "a.json", data), "root")
    assert record["file_name"] == "root/1.png"
    assert (record["height"], record["width"], record["image_id"]) == (8, 9, 1)
    assert record["pos_category_ids"] == [2, 0]
    assert record["neg_category_ids"] == [1]
    assert record["captions"] == ["an owl"]
    assert record["annotations"][0]["category_id"] == 2
    assert record["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


def test_records_are_in_order_of_image_ids_and_crowds_are_left_out() -> None:
    data = content([(9, 9)] * 3, [box(1, 2, 10, [0, 0, 1, 1]) | {"iscrowd": 1}])
    data["images"].reverse()
    records = dataset_dicts(data, "r", "x")
    assert [record["image_id"] for record in records] == [1, 2, 3]
    assert all(record["annotations"] == [] for record in records)


NAN = math.nan
BAD_BOXES = [[1, 1, 0, 3], [1, 1, 3, -2], [1, 1, NAN, 3], [9, 1, 2, 2], [1, 8, 2, 2], [-4, 1, 4, 2]]


@pytest.mark.parametrize("bbox", BAD_BOXES)
def test_bad_boxes_are_named_by_annotation_and_image(bbox: list[float]) -> None:
    data = content([(8, 9)], [box(1, 1, 10, [0, 0, 2, 2]), box(77, 1, 10, bbox)])
    with pytest.raises(DatasetError, match=r"1 annotations with a bad box: 77 of image 1 \(") as e:
        dataset_dicts(data, "r", "some.json")
    assert e.value.where == "some.json"
    assert "bad_boxes" in e.value.fix


def test_bad_boxes_can_be_dropped_or_clipped(caplog: pytest.LogCaptureFixture) -> None:
    annotations = [box(n, 1, 10, bbox) for n, bbox in enumerate(BAD_BOXES)]
    annotations += [box(50, 1, 11, [-2, 5, 4, 9]), box(51, 1, 11, [1, 1, 2, 2])]
    data = content([(8, 9)], annotations)
    (record,) = dataset_dicts(data, "r", "x", LoadOptions(bad_boxes="drop"))
    assert [a["bbox"] for a in record["annotations"]] == [[-2, 5, 4, 9], [1, 1, 2, 2]]
    assert "left out 6 annotations" in caplog.text
    (record,) = dataset_dicts(data, "r", "x", LoadOptions(bad_boxes="clip"))
    assert [a["bbox"] for a in record["annotations"]] == [[0, 5, 2, 3], [1, 1, 2, 2]]


def test_many_problems_are_counted_and_the_first_ten_shown() -> None:
    data = content([(8, 9)], [box(n, 1, 10, [1, 1, 0, 0]) for n in range(25)])
    with pytest.raises(DatasetError, match="25 annotations") as caught:
        dataset_dicts(data, "r", "x")
    assert "9 of image 1" in str(caught.value)
    assert "10 of image 1" not in str(caught.value)


def _broken(change: Any) -> dict[str, Any]:
    data = content([(8, 9), (8, 9)], [box(1, 1, 10, [0, 0, 2, 2]), box(2, 2, 11, [0, 0, 2, 2])])
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), "no list 'images'"),
        (lambda d: d.update(annotations={}), "no list 'annotations'"),
        (lambda d: d.update(categories=[]), "'categories' is empty"),
        (lambda d: d["categories"].append({"id": 10, "name": "x"}), "category ids given twice: 10"),
        (lambda d: d["categories"][0].pop("name"), "categories without an integer 'id'"),
        (lambda d: d["images"][1].update(id=1), "image ids given twice: 1"),
        (lambda d: d["images"][1].update(id="b"), "partly numbers and partly text"),
        (lambda d: d["images"][1].pop("id"), "images without an 'id', at: 1"),
        (lambda d: d["images"][1].update(height=0), "'height' and 'width': 2"),
        (lambda d: d["images"][1].pop("width"), "'height' and 'width': 2"),
        (lambda d: d["images"][1].pop("file_name"), "without 'file_name', .*: 2"),
        (lambda d: d["annotations"][1].update(id=1), "annotation ids given twice: 1"),
        (lambda d: d["annotations"][1].update(image_id=9), "not in 'images': 2"),
        (lambda d: d["annotations"][1].update(category_id=9), r"2 \(category 9\)"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), "not four numbers: 2"),
        (lambda d: d["annotations"][1].update(bbox=["1", 2, 3, 4]), "not four numbers: 2"),
        (lambda d: d["annotations"][1].pop("bbox"), "not four numbers: 2"),
        (lambda d: d["annotations"][1].update(segmentation=[[1, 2, 3]]), "x, y pairs: 2"),
        (lambda d: d["images"][0].update(pos_category_ids=[99]), r"1 \(category 99\)"),
        (lambda d: d["images"][0].update(neg_category_ids=[99]), r"1 \(category 99\)"),
        (lambda d: d["images"][0].update(pos_category_ids=[10, 10]), "label given twice.*: 1"),
        (lambda d: d["images"][0].update(captions="a cat"), "'captions' is not a list of texts: 1"),
        (lambda d: d["images"][0].update(file_name="../1.png"), r"leaves the image root: 1 \("),
        (lambda d: d["images"][0].update(file_name="a/../../1.png"), "leaves the image root: 1"),
        (lambda d: d["images"][0].update(file_name="/etc/x.png"), "leaves the image root: 1"),
        (lambda d: d["images"][0].update(file_name="c:\\x.png"), "leaves the image root: 1"),
        (lambda d: d["images"][0].update(file_name="a\\..\\..\\x.png"), "leaves the image root: 1"),
        (lambda d: d["images"][0].update(file_name="a\0.png"), "leaves the image root: 1"),
    ],
)
def test_broken_content_is_refused_by_name(change: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        dataset_dicts(_broken(change), "r", "x")


def test_image_label_sets_need_labels() -> None:
    data = content([(8, 9), (8, 9)])
    data["images"][0]["pos_category_ids"] = [10]
    options = LoadOptions(labels_required=True)
    with pytest.raises(DatasetError, match="without a label in 'pos_category_ids': 2"):
        dataset_dicts(data, "r", "x", options)
    data["images"][1]["pos_category_ids"] = []
    with pytest.raises(DatasetError, match="without a label"):
        dataset_dicts(data, "r", "x", options)


def test_lvis_v1_keeps_its_ids() -> None:
    data = content([(8, 9)], classes=tuple(f"c{n}" for n in range(1203)))
    with pytest.raises(DatasetError, match=r"not 1\.\.1203"):
        dataset_dicts(data, "r", "x")


@pytest.mark.parametrize(
    "name", ["dot..dot.png", "a b.png", "straße\n.png", "..hidden.png", "COLON:.png"]
)
def test_unusual_names_are_names(name: str) -> None:
    data = content([(8, 9)])
    data["images"][0]["file_name"] = name
    assert dataset_dicts(data, "r", "x")[0]["file_name"] == f"r/{name}"


def test_links_out_of_the_root_are_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "1.png").touch()
    (root / "inside.png").symlink_to(root / "sub")
    (root / "1.png").symlink_to(outside / "1.png")
    (root / "far").symlink_to(outside)
    data = content([(8, 9), (8, 9), (8, 9)])
    data["images"][1]["file_name"] = "far/1.png"
    data["images"][2]["file_name"] = "inside.png"
    with pytest.raises(DatasetError, match=r"2 images are links that leave .*: 1\.png, far/1\.png"):
        dataset_dicts(data, str(root), "x")
    assert len(dataset_dicts(data, str(root), "x", LoadOptions(allow_links=True))) == 3
    # the root itself may be a link
    (tmp_path / "link").symlink_to(root)
    del data["images"][:2]
    assert len(dataset_dicts(data, str(tmp_path / "link"), "x")) == 1


def test_loading_leaves_the_content_as_it_was() -> None:
    data = content([(8, 9)], [box(1, 1, 10, [-1, 0, 5, 5])])
    before = copy.deepcopy(data)
    dataset_dicts(data, "r", "x", LoadOptions(bad_boxes="clip"))
    assert data == before


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(DatasetError, match="unknown policy 'ignore'"):
        LoadOptions(bad_boxes="ignore")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n  1,\n  2', "line 3, column 4"),
        ('{"images": [1,,2]}', "line 1, column 15"),
        ('\ufeff{"images": []}', "byte-order mark at line 1, column 1"),
        ('{"a": "NaN, \\" NaN",\n "b": [1, NaN]}', "NaN is not a JSON number at line 2, column 11"),
        ('{"b": -Infinity}', "-Infinity is not a JSON number at line 1, column 7"),
        ("", "the file is empty"),
        ("[1]", "the top level is a list"),
        ("[" * 100_000, "nested too deeply|line 1"),
    ],
)
def test_json_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message) as caught:
        read_json(path)
    assert caught.value.where == str(path)


def test_other_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"name": "caf\xe9"}')
    with pytest.raises(DatasetError, match="not UTF-8 text: byte 13"):
        read_json(tmp_path / "latin.json")


@pytest.mark.parametrize("first", [True, False])
def test_categories_are_read_alone(tmp_path: Path, first: bool) -> None:
    data = content([(8, 9)], classes=tuple(f"class {n} ü" for n in range(60_000)))
    if first:
        data = {"categories": data.pop("categories"), **data}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert read_categories(path) == data["categories"]
    # not even a broken rest is looked at
    path.write_text(path.read_text().replace('"images": [', '"images": [[[', 1))
    assert read_categories(path) == data["categories"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"info": {"categories": [1]}, "categories": [2]}, [2]),
        ({"info": '"categories": [1]', "categories": [2]}, [2]),
    ],
)
def test_an_ambiguous_key_is_read_in_full(tmp_path: Path, data: Any, expected: Any) -> None:
    assert read_categories(write(tmp_path / "a.json", data)) == expected


@pytest.mark.parametrize("data", [{"categories": {}}, {"images": []}])
def test_missing_categories_are_named(tmp_path: Path, data: Any) -> None:
    with pytest.raises(DatasetError, match="no list 'categories'"):
        read_categories(write(tmp_path / "a.json", data))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json_atomic(path, {"a": math.nan})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]
