"""The demo dataset: what the command writes, read back with the usual loaders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from lvis import LVIS, LVISEval, LVISResults
from pycocotools.coco import COCO

from ext_common.data.dataset_registry import register_from_yaml, unregister
from tools.demo_data.classes import BASE_CLASSES, CLASSES, NOVEL_CLASSES
from tools.demo_data.manifest import Settings, is_complete
from tools.demo_data.paintings import SIDE, paint
from tools.make_demo_dataset import main

REPO = Path(__file__).resolve().parents[2]
SMALL = ("--train", "8", "--labels", "24", "--val", "10", "--size", "128")
SCENE_FILES = ("base_train", "oracle_train", "val")
NOVEL_IDS = {kind.id for kind in NOVEL_CLASSES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset, made once; tests that change files make their own."""
    path = tmp_path_factory.mktemp("demo") / "data"
    assert main(["--output", str(path), *SMALL]) == 0
    return path


@pytest.fixture
def registered(folder: Path) -> Iterator[list[str]]:
    names = register_from_yaml(folder / "datasets.yaml")
    yield names
    for name in names:
        unregister(name)


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def _coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_run_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "again"), *SMALL]) == 0
    first = _checksums(folder)
    assert _checksums(tmp_path / "again") == first
    assert len(first) == 8 + 8 + 10 + 24 + 7


def test_painted_backgrounds(folder: Path, tmp_path: Path) -> None:
    few, more = paint(2, seed=5), paint(4, seed=5)
    assert [picture.shape for picture in more] == [(SIDE, SIDE, 3)] * 4
    assert all(np.array_equal(a, b) for a, b in zip(few, more, strict=False))
    assert len({picture.tobytes() for picture in (*more, *paint(4, seed=6))}) == 8
    assert min(np.ptp(picture) for picture in more) > 50  # something to see in each

    painted = tmp_path / "painted"
    assert main(["--output", str(painted), *SMALL, "--paintings", "4"]) == 0
    files, others = _checksums(painted), _checksums(folder)
    assert files.keys() == others.keys()
    assert not any(files[name] == others[name] for name in files if name.endswith(".jpg"))
    assert is_complete(painted, Settings(0, 8, 24, 10, 128, 4))
    assert not is_complete(painted, Settings(0, 8, 24, 10, 128, 5))


def test_a_picture_does_not_depend_on_how_many_are_made(folder: Path, tmp_path: Path) -> None:
    fewer = ("--train", "5", "--labels", "12", "--val", "3", "--size", "128")
    assert main(["--output", str(tmp_path / "fewer"), *fewer]) == 0
    all_of, some_of = _checksums(folder), _checksums(tmp_path / "fewer")
    pictures = [name for name in some_of if name.endswith(".jpg")]
    assert len(pictures) == 5 + 5 + 3 + 12
    assert all(some_of[name] == all_of[name] for name in pictures)


def test_another_seed_makes_other_pictures(folder: Path, tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "other"), *SMALL, "--seed", "1"]) == 0
    ours, others = _checksums(folder), _checksums(tmp_path / "other")
    pictures = {name for name in ours if name.startswith("images/")}
    assert pictures <= others.keys()
    assert not [name for name in pictures if ours[name] == others[name]]


@pytest.mark.parametrize("name", SCENE_FILES)
def test_pycocotools_and_lvis_read_the_scenes(folder: Path, name: str) -> None:
    coco, lvis = _coco(folder / f"{name}.json"), LVIS(str(folder / f"{name}.json"))
    assert coco.getCatIds() == [kind.id for kind in CLASSES] == lvis.get_cat_ids()
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == len(lvis.get_ann_ids()) > 0
    for annotation in annotations:
        image = coco.imgs[annotation["image_id"]]
        mask_HW = coco.annToMask(annotation)
        assert np.array_equal(mask_HW, lvis.ann_to_mask(annotation))
        assert mask_HW.sum() == pytest.approx(annotation["area"], rel=0.12)
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= image["width"]
        assert y + height <= image["height"]
        rows, cols = np.nonzero(mask_HW)
        edges = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert np.abs(np.array(edges) - [x, y, x + width, y + height]).max() <= 1


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_scores_full_marks_as_a_detection(folder: Path, kind: str) -> None:
    truth = LVIS(str(folder / "val.json"))
    detections = [
        {key: record[key] for key in ("image_id", "category_id", "bbox")}
        | {"segmentation": truth.ann_to_rle(record), "score": 1.0}
        for record in truth.load_anns()
    ]
    scores = LVISEval(truth, LVISResults(truth, detections), kind)
    scores.run()
    assert {scores.get_results()[key] for key in ("AP", "APr", "APc", "APf")} == {1.0}


@pytest.mark.parametrize("name", SCENE_FILES)
def test_pictures_exist_with_the_size_that_is_written(folder: Path, name: str) -> None:
    content = _read(folder, name)
    files = {path.name for path in (folder / "images" / name).iterdir()}
    assert {Path(image["file_name"]).name for image in content["images"]} == files
    for image in content["images"]:
        pixels = cv2.imread(str(folder / "images" / image["file_name"]))
        assert pixels.shape[:2] == (image["height"], image["width"]) == (128, 128)


def test_novel_classes_have_no_boxes_in_the_base_set(folder: Path) -> None:
    content = _read(folder, "base_train")
    assert not NOVEL_IDS & {record["category_id"] for record in content["annotations"]}
    # nobody looked for them either: their absence must not teach
    assert not NOVEL_IDS & {i for image in content["images"] for i in image["neg_category_ids"]}
    counts = {c["id"]: (c["image_count"], c["instance_count"]) for c in content["categories"]}
    assert {counts[i] for i in NOVEL_IDS} == {(0, 0)}


def test_novel_classes_are_in_the_other_sets(folder: Path) -> None:
    for name in ("oracle_train", "val"):
        assert NOVEL_IDS & {r["category_id"] for r in _read(folder, name)["annotations"]}
    labels = _read(folder, "image_labels")
    named = [image["pos_category_ids"] for image in labels["images"]]
    assert sorted(named) == sorted([[kind.id] for kind in CLASSES] * 2)
    assert labels["annotations"] == []


@pytest.mark.parametrize("name", SCENE_FILES)
def test_each_record_of_a_scene_agrees_with_the_others(folder: Path, name: str) -> None:
    content = _read(folder, name)
    asked = {kind.id for kind in (BASE_CLASSES if name == "base_train" else CLASSES)}
    present: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for record in content["annotations"]:
        present[record["image_id"]].add(record["category_id"])
    for image in content["images"]:
        assert set(image["neg_category_ids"]) == asked - present[image["id"]]
        assert image["not_exhaustive_category_ids"] == []
    for category in content["categories"]:
        assert category["image_count"] == sum(category["id"] in ids for ids in present.values())
        assert category["instance_count"] == sum(
            record["category_id"] == category["id"] for record in content["annotations"]
        )


def test_the_registry_registers_the_same_classes_everywhere(
    folder: Path, registered: list[str]
) -> None:
    assert registered == [
        "demo_base_train",
        "demo_oracle_train",
        "demo_image_labels",
        "demo_folders",
        "demo_val",
    ]
    names = [kind.name for kind in CLASSES]
    for name in registered:
        assert list(MetadataCatalog.get(name).thing_classes) == names
    assert MetadataCatalog.get("demo_val").class_groups == {
        "base": [kind.name for kind in BASE_CLASSES],
        "novel": [kind.name for kind in NOVEL_CLASSES],
    }
    assert [len(DatasetCatalog.get(name)) for name in registered] == [8, 8, 24, 24, 10]


@pytest.mark.usefixtures("registered")
def test_folders_and_label_file_say_the_same() -> None:
    by_file, by_folder = (
        {record["file_name"]: record["pos_category_ids"] for record in DatasetCatalog.get(name)}
        for name in ("demo_image_labels", "demo_folders")
    )
    assert by_file == by_folder


def test_no_file_holds_an_absolute_path(folder: Path) -> None:
    for path in (*folder.glob("*.json"), folder / "datasets.yaml"):
        text = path.read_text()
        assert str(folder) not in text
        assert '"/' not in text
    for entry in yaml.safe_load((folder / "datasets.yaml").read_text())["datasets"].values():
        assert (folder / entry["images"]).is_dir()
        assert not Path(entry["images"]).is_absolute()


def test_a_complete_dataset_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["--output", str(folder), *SMALL]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    printed = capsys.readouterr().out
    assert "nothing to do" in printed
    assert str(folder / "datasets.yaml") in printed


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "no manifest entry"])
def test_a_damaged_dataset_is_made_anew(tmp_path: Path, damage: str) -> None:
    data = tmp_path / "data"
    tiny = ["--output", str(data), "--train", "1", "--labels", "12", "--val", "1", "--size", "96"]
    assert main(tiny) == 0
    whole = _checksums(data)
    (data / "notes.txt").write_text("not a part of the dataset")
    picture = data / "images" / "val" / "000001.jpg"
    if damage == "changed":
        picture.write_bytes(picture.read_bytes()[:-9])
    elif damage == "missing":
        picture.unlink()
    elif damage == "added":
        picture.with_name("000002.jpg").write_bytes(picture.read_bytes())
    else:
        (data / "manifest.json").write_text("{}")
    assert main(tiny) == 0
    assert _checksums(data) == whole | {"notes.txt": _checksums(data)["notes.txt"]}


def test_other_settings_replace_the_dataset(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny = ["--output", str(data), "--labels", "12", "--val", "1", "--size", "96"]
    assert main([*tiny, "--train", "2"]) == 0
    assert main([*tiny, "--train", "1"]) == 0
    assert [path.name for path in (data / "images" / "base_train").iterdir()] == ["000001.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_other_things_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["--output", str(tmp_path)]) == 1
    assert "holds no demo dataset" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("option", "value"), [("--size", "95"), ("--size", "257"), ("--train", "0"), ("--seed", "-1")]
)
def test_impossible_settings_end_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["--output", str(tmp_path / "data"), option, value]) == 1
    message = capsys.readouterr().err
    assert f"{option[2:]} is {value}" in message
    assert "give" in message
    assert not (tmp_path / "data").exists()


def test_the_script_runs_from_the_repository_root(tmp_path: Path) -> None:
    tiny = ["--train", "1", "--labels", "12", "--val", "1", "--size", "96"]
    command = [sys.executable, "tools/make_demo_dataset.py", "--output", str(tmp_path / "data")]
    done = subprocess.run(
        [*command, *tiny],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "preview.png").is_file()
    assert "preview.png" in done.stdout
