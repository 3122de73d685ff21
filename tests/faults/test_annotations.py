"""Cases 10 to 18 of docs/reliability.md: bad annotation files."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ext_common import packages
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_dataset, register_from_config, unregister
from ext_common.data.dataset_spec import DatasetSpec, load_dataset
from ext_common.data.index_store import open_index
from ext_common.data.indexing import Indexing
from ext_common.data.json_files import read_json
from ext_common.data.loader import build_train_loader
from ext_common.data.lvis_json import LoadOptions, load_lvis_json
from ext_common.errors import DatasetError
from tests.dist.tiny_training import TinyRun, write_run
from tests.faults.data_runs import (
    annotations,
    as_user,
    check,
    final_line,
    set_annotations,
    train,
)
from tools import prepare_data

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    return write_run(tmp_path)


def refused(run: TinyRun, change: Change, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The table of the check, and the final line of the training that must not start."""
    data = annotations(run)
    change(data)
    set_annotations(run, data)
    assert check(run) == 1
    table = capsys.readouterr().out
    assert train(run) == 1
    assert not list(run.output.glob("*.pth"))
    return table, final_line(capsys.readouterr().err)


BOXES = {
    "no width": ([5, 5, 0, 8], "empty or negative"),
    "negative": ([5, 5, 4, -8], "empty or negative"),
    "outside": ([96, 5, 4, 8], "outside"),
}


@pytest.mark.parametrize("name", BOXES)
def test_case_10_bad_boxes_are_listed_by_id(
    run: TinyRun, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box, why = BOXES[name]
    table, line = refused(run, lambda d: d["annotations"][4].update(bbox=box), capsys)
    assert f"5 of image 3 ({why})" in table
    assert f"1 annotations with a bad box: 5 of image 3 ({why})" in line
    assert "bad_boxes: drop or clip" in line


def test_case_10_nan_has_an_id_and_a_place(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    box = [5, 5, math.nan, 8]
    table, line = refused(run, lambda d: d["annotations"][4].update(bbox=box), capsys)
    assert "5 of image 3 (not finite)" in table
    assert "line 1, column" in table
    assert "NaN is not a JSON number at line 1, column" in line


def test_case_10_a_user_repairs_the_file(run: TinyRun) -> None:
    data = annotations(run)
    for entry, box in zip(
        data["annotations"], [[5, 5, 0, 8], [90, 5, math.nan, 8], [90, 5, 20, 8]], strict=False
    ):
        entry["bbox"] = box
    set_annotations(run, data)
    source, images = str(run.data / "instances.json"), str(run.data / "images")
    words = ("check", "--json", source, "--images", images, "--fix", "clip")
    done = as_user("prepare_data", *words)
    assert done.returncode == 1
    assert "box-empty" in done.stdout
    assert "2 annotations left out, 1 boxes cut" in done.stdout
    assert final_line(done.stderr).startswith("prepare_data: error: ")
    fixed = run.data / "instances_fixed.json"
    boxes = {entry["id"]: entry["bbox"] for entry in json.loads(fixed.read_text())["annotations"]}
    assert list(boxes) == [3, 4, 5, 6, 7, 8]
    assert boxes[3] == [90, 5, 6, 8]
    fixed.replace(source)
    assert check(run) == 0
    assert train(run) == 0


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        (
            lambda d: [entry.update(category_id=9) for entry in d["annotations"]],
            "category-unknown",
            "8 annotations with a category that is not in 'categories': 1 (category 9), 2 (",
        ),
        (
            lambda d: d["annotations"].extend({**d["annotations"][0]} for _ in range(12)),
            "annotation-id-twice",
            "12 annotation ids given twice: 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, ...",
        ),
        (
            lambda d: d["images"].pop(0),
            "annotation-no-image",
            "2 annotations of images that are not in 'images': 1, 2",
        ),
    ],
)
def test_case_11_references_that_lead_nowhere(
    run: TinyRun, change: Change, key: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table, line = refused(run, change, capsys)
    assert key in table
    assert message in line


def test_case_12_train_and_validation_must_number_classes_alike(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    data = annotations(run)
    # gaps are no problem: 5 and 90 become 0 and 1
    for entry in data["categories"]:
        entry["id"] = {1: 5, 2: 90}[entry["id"]]
    for entry in data["annotations"]:
        entry["category_id"] = {1: 5, 2: 90}[entry["category_id"]]
    set_annotations(run, data)
    assert check(run, "--classes") == 0
    out = capsys.readouterr().out
    assert "category ids 5..90 with gaps become 0..1" in out
    assert "90 -> 1      square" in out
    assert train(run) == 0
    names = [entry["name"] for entry in data["categories"]]
    for entry, name in zip(data["categories"], reversed(names), strict=True):
        entry["name"] = name
    val = run.data / "val.json"
    val.write_text(json.dumps(data))
    assert check(run, "--val", str(val)) == 1
    assert "class 0 is 'square' here and 'disc' in" in capsys.readouterr().out
    number = len(load_dataset(run.val))
    assert number == 4
    spec = replace(_spec(run, "case_12_val"), json=str(val), type="coco", evaluator="coco")
    register_dataset(spec)
    try:
        assert train(run, "DATASETS.TEST", "('case_12_val',)") == 1
    finally:
        unregister("case_12_val")
    line = final_line(capsys.readouterr().err)
    assert "dataset 'case_12_val': class 0 is 'square' here and 'disc' in" in line
    assert "same categories with the same ids" in line


def _spec(run: TinyRun, name: str) -> DatasetSpec:
    return DatasetSpec(
        name,
        "image_labels",
        images=str(run.data / "images"),
        json=str(run.data / "instances.json"),
        load=LoadOptions(labels_required=True),
    )


@pytest.mark.parametrize("kept", [False, True])
def test_case_13_images_without_annotations(
    run: TinyRun, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = annotations(run)
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != 2]
    set_annotations(run, data)
    assert check(run) == 0  # a warning, no error
    assert "image-empty" in capsys.readouterr().out
    assert train(run, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(not kept)) == 0
    log = (run.output / "log.txt").read_text()
    assert (
        "1 images without labels are kept" if kept else "left out 1 images without labels"
    ) in log
    data["annotations"] = []
    set_annotations(run, data)
    run = replace(run, output=run.output.with_name("again"))
    assert train(run) == 1
    line = final_line(capsys.readouterr().err)
    assert "none of the 4 images has an annotation (set DATALOADER.FILTER_EMPTY" in line
    # learning from background alone is allowed where it is asked for
    assert train(run, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False") == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "1 images without a label in 'pos_category_ids': 2"),
        ([3], "1 images with a label that is not in 'categories': 2 (category 3)"),
        ([1, 1], "1 images with a label given twice in 'pos_category_ids': 2"),
        (["1"], "1 images whose labels are not a list of category ids: 2"),
        (1, "1 images whose labels are not a list of category ids: 2"),
    ],
)
def test_case_14_bad_image_labels_are_refused_when_loaded(
    run: TinyRun, labels: Any, message: str
) -> None:
    data = annotations(run)
    data["annotations"] = []
    for image in data["images"]:
        image["pos_category_ids"] = [1] if image["id"] != 2 else labels
    set_annotations(run, data)
    for indexing in (Indexing(-1), Indexing(0)):
        with pytest.raises(DatasetError) as caught:
            _spec(run, "case_14").records(indexing)
        assert message in str(caught.value)
    assert check(run, "--type", "image_labels") == 1


@pytest.mark.parametrize("indexing", [Indexing(-1), Indexing(0)], ids=["read", "indexed"])
def test_case_15_captions(
    run: TinyRun, indexing: Indexing, caplog: pytest.LogCaptureFixture
) -> None:
    data = annotations(run)
    long = "word " * 5000
    for image, texts in zip(data["images"], (["🙂 ça va"], [long], ["a"], []), strict=True):
        image["captions"] = texts
    set_annotations(run, data)
    spec = replace(_spec(run, "case_15"), type="lvis", load=LoadOptions())
    found = spec.records(indexing)
    assert [record["captions"] for record in found] == [["🙂 ça va"], [long], ["a"], []]
    assert "1 images with a caption of more than 75 words, cut when encoded: 2" in caplog.text
    assert check(run) == 0
    for texts, message in (
        (["a", ""], "1 images with an empty caption: 3"),
        (["a", 7], "1 images whose 'captions' is not a list of texts: 3"),
        ("a", "1 images whose 'captions' is not a list of texts: 3"),
    ):
        data["images"][2]["captions"] = texts
        set_annotations(run, data)
        with pytest.raises(DatasetError) as caught:
            spec.records(indexing)
        assert message in str(caught.value)
        assert check(run) == 1


def _write_large(path: Path, images: int) -> None:
    """An LVIS-like file with eight boxes an image."""
    draw = random.Random(0)
    with path.open("w") as stream:
        stream.write('{"annotations": [')
        for number in range(images * 8):
            entry = {
                "id": number,
                "image_id": number % images,
                "category_id": 1,
                "bbox": [draw.uniform(0, 90) for _ in range(2)] + [5.25, 7.5],
                "segmentation": [[round(draw.uniform(0, 90), 2) for _ in range(12)]],
            }
            stream.write((",\n" if number else "") + json.dumps(entry))
        stream.write('], "images": [')
        for number in range(images):
            entry = {"id": number, "file_name": f"{number}.jpg", "height": 100, "width": 100}
            stream.write((",\n" if number else "") + json.dumps(entry))
        stream.write('], "categories": [{"id": 1, "name": "thing"}]}')


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def _growth(work: Callable[[], object], answer: Any) -> None:
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    kept = work()
    answer.put(_resident("VmHWM") - before)
    del kept


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which a process of its own grows at most."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_growth, args=(work, answer))
    child.start()
    peak: int = answer.get()
    child.join()
    return peak


def test_case_16_memory_is_bounded_and_progress_is_told(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    _write_large(path, 12_000)
    size = path.stat().st_size
    assert size > 15e6
    plain = peak_of(lambda: load_lvis_json(path, ""))
    told: list[tuple[int, int]] = []
    first = peak_of(lambda: open_index(path))
    os.unlink(next(tmp_path.glob("*.index")))
    index = open_index(path, progress=lambda *at: told.append(at))
    second = peak_of(lambda: open_index(path))
    assert plain > 4 * size  # what it would take otherwise
    assert first < 3 * size
    assert second < size / 2
    assert told[-1] == (size, size)
    assert len(index) == 12_000
    assert len(index.entries(7)[1]) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n {"id": 1},\n {"id"', "the file looks cut off at line 3, column 7"),
        ('\ufeff{"images": []}', "starts with a byte-order mark at line 1, column 1"),
        ('{"images": [],\n "x": [1,\n NaN]}', "NaN is not a JSON number at line 3, column 2"),
        ('{"images": [],\n "x": Infinity}', "Infinity is not a JSON number at line 2, column 7"),
    ],
)
def test_case_17_broken_json_has_a_line_and_a_column(
    run: TinyRun, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.data / "instances.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError) as plain:
        read_json(path)
    with pytest.raises(DatasetError) as indexed:
        open_index(path)
    assert str(plain.value) == str(indexed.value)
    assert message in str(plain.value)
    assert train(run) == 1
    assert f"instances.json: {plain.value.what}" in final_line(capsys.readouterr().err)
    if "not a JSON number" not in message:
        assert check(run) == 1
        assert plain.value.what in final_line(capsys.readouterr().err)


def test_case_18_proposals_belong_to_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / name)
    path = tmp_path / "proposals.json"

    def checked(content: Any) -> tuple[int, str, str]:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        words = ["check", "--proposals", str(path), "--images", str(tmp_path / "images")]
        code = prepare_data.main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    box = [1, 2, 10, 12]
    good = {"a/1.png": [box], "b/1.png": [box], "b/2.png": [box, [0, 0, 30, 20]]}
    assert checked(good)[0] == 0
    code, out, _ = checked({"a/1.png": [box], "b/1.png": []})
    assert code == 1
    assert "images without an entry in the proposals file" in out
    assert "b/2.png" in out
    assert "proposals-empty" in out
    code, out, _ = checked({"1.png": [box], "2.png": [box]})
    assert code == 1
    assert "1.png (a/1.png or b/1.png)" in out
    assert "2.png (meant b/2.png?)" in out
    code, out, _ = checked({**good, "b/2.png": [[5, 5, 5, 9], box, [1, 2, 3], [0, 0, 40, 9]]})
    assert code == 1
    assert "2 of b/2.png" in out
    code, out, _ = checked({**good, "b/2.png": [[5, 5, 5, 9], box, [0, 0, 40, 9]]})
    assert "0 of b/2.png, 2 of b/2.png" in out
    code, _, err = checked('{"a/1.png": [],\n "a/1.png": []}')
    assert code == 1
    assert "the key 'a/1.png' stands twice" in final_line(err)


def test_case_16_indexed_training_is_the_same_run(run: TinyRun) -> None:
    packages.register_all()

    def ids(*words: str) -> list[Any]:
        cfg = load_config(run.config_file, words)
        register_from_config(cfg)
        batches = islice(build_train_loader(cfg), 5)
        return [[(s["image_id"], float(s["image"].sum())) for s in batch] for batch in batches]

    plain = ids()
    assert not list(run.data.glob("*.index"))
    assert ids("DATASETS.INDEX_ABOVE_MB", "0", "DATALOADER.NUM_WORKERS", "2") == plain
    assert len(list(run.data.glob("*.index"))) == 1
