from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ext_common.config import get_config
from ext_common.data.dataset_registry import (
    register_from_config,
    register_from_yaml,
    require_dataset,
    unregister,
)
from ext_common.data.dataset_spec import categories_of
from ext_common.errors import ConfigError, DatasetError
from tests.ext_common.annotation_files import box, content, write


@pytest.fixture(autouse=True)
def _forget_new_datasets() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        unregister(name)


def registry(folder: Path, **datasets: Any) -> Path:
    path = folder / "datasets.yaml"
    path.write_text(yaml.safe_dump({"datasets": datasets}))
    return path


def lvis(**more: Any) -> dict[str, Any]:
    return {"type": "lvis", "json": "a.json", "images": "images", **more}


def test_a_dataset_has_records_and_metadata(tmp_path: Path) -> None:
    data = content([(8, 9), (8, 9)], [box(1, 1, 12, [1, 1, 3, 3]), box(2, 1, 12, [2, 2, 3, 3])])
    write(tmp_path / "a.json", data)
    path = registry(tmp_path, reg_train=lvis(groups={"base": ["cat"], "novel": ["dog", "owl"]}))
    assert register_from_yaml(path) == ["reg_train"]
    records = DatasetCatalog.get("reg_train")
    assert [record["image_id"] for record in records] == [1, 2]
    assert records[0]["file_name"] == str(tmp_path / "images" / "1.png")
    assert "ann_type" not in records[0]
    metadata = MetadataCatalog.get("reg_train")
    assert metadata.name == "reg_train"
    assert metadata.thing_classes == ["cat", "dog", "owl"]
    assert metadata.thing_dataset_id_to_contiguous_id == {10: 0, 11: 1, 12: 2}
    assert metadata.json_file == str(tmp_path / "a.json")
    assert metadata.image_root == str(tmp_path / "images")
    assert metadata.evaluator_type == "lvis"
    assert metadata.class_groups == {"base": ["cat"], "novel": ["dog", "owl"]}
    assert metadata.class_image_count == [
        {"id": 10, "image_count": 0},
        {"id": 11, "image_count": 0},
        {"id": 12, "image_count": 1},
    ]
    assert metadata.get("thing_colors") is None
    assert metadata.as_dict()["thing_classes"] == metadata.thing_classes
    with pytest.raises(AttributeError, match="thing_colors"):
        metadata.thing_colors  # noqa: B018
    metadata.set(thing_colors=[(1, 2, 3)])
    assert metadata.thing_colors == [(1, 2, 3)]


def test_registering_opens_no_file_and_metadata_follow_the_file(tmp_path: Path) -> None:
    register_from_yaml(registry(tmp_path, reg_late=lvis()))
    metadata = MetadataCatalog.get("reg_late")
    with pytest.raises(DatasetError, match=r"a\.json: annotations cannot be read"):
        metadata.thing_classes  # noqa: B018
    write(tmp_path / "a.json", content([(8, 9)]))
    assert metadata.thing_classes == ["cat", "dog", "owl"]
    write(tmp_path / "a.json", content([(8, 9)], classes=("emu",)))
    assert metadata.thing_classes == ["emu"]


def test_other_types(tmp_path: Path) -> None:
    labels = content([(8, 9)])
    labels["images"][0]["pos_category_ids"] = [11]
    write(tmp_path / "labels.json", labels)
    write(tmp_path / "a.json", content([(8, 9)], [box(1, 1, 10, [0, 0, 1, 1])]))
    (tmp_path / "tree" / "owl").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "tree" / "owl" / "x.png")
    folders = {"type": "class_folders", "images": "tree"}
    path = registry(
        tmp_path,
        reg_box={**lvis(type="coco")},
        reg_labels={"type": "image_labels", "json": "labels.json", "images": "images"},
        reg_from={**folders, "classes_from": "reg_box"},
        reg_list={**folders, "classes": ["emu", "owl"], "index": "list.index.json"},
        reg_file={**folders, "classes": "names.txt", "index": "file.index.json"},
        reg_none={**folders, "index": "sub/none.index.json"},
    )
    (tmp_path / "names.txt").write_text("owl\nemu\n\n")
    register_from_yaml(path)
    assert MetadataCatalog.get("reg_box").evaluator_type == "coco"
    assert MetadataCatalog.get("reg_labels").get("evaluator_type") is None
    (record,) = DatasetCatalog.get("reg_labels")
    assert (record["ann_type"], record["pos_category_ids"]) == ("image", [1])
    expected = {
        "reg_from": (["cat", "dog", "owl"], 2),
        "reg_list": (["emu", "owl"], 1),
        "reg_file": (["owl", "emu"], 0),
        "reg_none": (["owl"], 0),
    }
    for name, (classes, label) in expected.items():
        assert MetadataCatalog.get(name).thing_classes == classes
        (record,) = DatasetCatalog.get(name)
        assert record["ann_type"] == "image"
        assert record["pos_category_ids"] == [label]
        assert record["file_name"] == str(tmp_path / "tree" / "owl" / "x.png")
        counts = MetadataCatalog.get(name).class_image_count
        assert [entry["image_count"] for entry in counts] == [int(c == "owl") for c in classes]
    assert (tmp_path / "tree.index.json").is_file()
    assert (tmp_path / "sub" / "none.index.json").is_file()
    assert [c["id"] for c in categories_of("reg_from")] == [10, 11, 12]


def test_classes_of_a_dataset_of_detectron2() -> None:
    coco = categories_of("coco_2017_val")
    assert (coco[0], coco[-1]) == (
        {"id": 1, "name": "person"},
        {"id": 90, "name": "toothbrush"},
    )
    lvis_classes = categories_of("lvis_v1_val")
    assert lvis_classes[1202]["id"] == 1203
    with pytest.raises(DatasetError, match="no classes"):
        categories_of("ade20k_sem_seg_val")


def test_the_same_again_is_no_error_and_another_content_is(tmp_path: Path) -> None:
    write(tmp_path / "a.json", content([(8, 9)]))
    path = registry(tmp_path, reg_twice=lvis())
    cfg = get_config()
    cfg.DATASETS.REGISTRY = (str(path), str(path))
    assert register_from_config(cfg) == ["reg_twice", "reg_twice"]
    registry(tmp_path, reg_twice=lvis(bad_boxes="drop"))
    with pytest.raises(DatasetError, match="'reg_twice' is registered already with other content"):
        register_from_config(cfg)
    unregister("reg_twice")
    assert register_from_yaml(path) == ["reg_twice"]
    registry(tmp_path, coco_2017_val=lvis())
    with pytest.raises(DatasetError, match="'coco_2017_val' is registered already"):
        register_from_yaml(path)


def test_unknown_names_get_suggestions(tmp_path: Path) -> None:
    write(tmp_path / "a.json", content([(8, 9)]))
    register_from_yaml(registry(tmp_path, reg_known_train=lvis()))
    require_dataset("reg_known_train")
    with pytest.raises(DatasetError, match="unknown dataset 'reg_knwon_train'") as caught:
        require_dataset("reg_knwon_train", where="DATASETS.TRAIN")
    assert caught.value.where == "DATASETS.TRAIN"
    assert "did you mean reg_known_train" in caught.value.fix


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "voc", "json": "a"}, "type 'voc' is none of lvis, coco"),
        ("lvis", "type None is none of"),
        (lvis(evalutor="lvis"), "unknown key 'evalutor' .*did you mean evaluator"),
        ({"type": "lvis", "json": "a.json"}, "missing images"),
        ({"type": "lvis"}, "missing images, json"),
        (lvis(json=3), "json is 3, not a text"),
        (lvis(images=""), "images is '', not a text"),
        (lvis(groups=["a"]), "groups is not a block"),
        (lvis(groups={"base": "cat"}), "group 'base' is not a list of class names"),
        (lvis(bad_boxes="keep"), "unknown policy 'keep'"),
        (lvis(allow_links="yes"), "allow_links is 'yes', not true or false"),
        ({"type": "class_folders", "images": "x", "json": "a"}, "unknown key 'json'"),
        (
            {"type": "class_folders", "images": "x", "classes": ["a"], "classes_from": "b"},
            "both 'classes' and 'classes_from'",
        ),
        ({"type": "class_folders", "images": "x", "classes": [1]}, "classes is not a list"),
    ],
)
def test_wrong_entries_are_refused_by_name(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        register_from_yaml(registry(tmp_path, reg_wrong=entry))
    assert "reg_wrong" not in DatasetCatalog


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("datasets: [a]", DatasetError),
        ("dataset: {}", DatasetError),
        ("datasets: {}\nmore: 1", DatasetError),
        ("datasets:\n  a: {type: lvis}\n  a: {type: coco}", ConfigError),
        ("datasets: !!python/object/apply:os.getcwd []", ConfigError),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, kind: type[Exception]) -> None:
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    with pytest.raises(kind, match=r"datasets\.yaml"):
        register_from_yaml(path)


def test_a_class_list_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "tree" / "owl").mkdir(parents=True)
    entry = {"type": "class_folders", "images": "tree", "classes": "none.txt"}
    register_from_yaml(registry(tmp_path, reg_list=entry))
    with pytest.raises(DatasetError, match=r"none\.txt: class list cannot be read"):
        DatasetCatalog.get("reg_list")
