"""Indexed annotations against the direct loader: the same records, columns and errors."""

from __future__ import annotations

import copy
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ext_common.config import get_config
from ext_common.data.array_file import ArrayFileError, map_arrays, read_header, write_arrays
from ext_common.data.dataset_registry import register_dataset, unregister
from ext_common.data.dataset_spec import DatasetSpec, load_dataset
from ext_common.data.index_store import index_places, open_index
from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.indexing import Indexing
from ext_common.data.loader import build_test_loader, build_train_loader
from ext_common.data.lvis_json import LoadOptions, images_per_class, load_lvis_json
from ext_common.data.record_columns import columns_of
from ext_common.data.records import check_masks, join_datasets
from ext_common.errors import ConfigError, DatasetError
from tests.ext_common.annotation_files import box, content, write, write_images

ALWAYS = Indexing(above_mb=0)


def indexed(path: Path, options: LoadOptions | None = None, root: str = "root") -> IndexedRecords:
    options = options or LoadOptions()
    return IndexedRecords(open_index(path, options), root, options)


def mixed_content(seed: int, images: int = 9, *, text_ids: bool = False) -> dict[str, Any]:
    """Unordered images, annotations of all kinds anywhere in the file."""
    draw = random.Random(seed)
    data = content([(draw.randint(5, 40), draw.randint(5, 40)) for _ in range(images)])
    draw.shuffle(data["images"])
    for image in data["images"]:
        if draw.random() < 0.5:
            image["pos_category_ids"] = draw.sample([10, 11, 12], draw.randint(0, 3))
        if draw.random() < 0.5:
            image["neg_category_ids"] = [draw.choice([10, 11, 12])]
        if draw.random() < 0.3:
            image["captions"] = ["ein schöner Tag", "🙂"][: draw.randint(0, 2)]
    for number in range(draw.randint(0, 40)):
        owner = draw.choice(data["images"])
        size = [draw.uniform(0.5, owner["width"]), draw.uniform(0.5, owner["height"])]
        place = [draw.uniform(-0.4, 1) * size[0], draw.uniform(-0.4, 1) * size[1]]
        place = [min(place[0], owner["width"] - 1), min(place[1], owner["height"] - 1)]
        entry = box(number + 100, owner["id"], draw.choice([10, 11, 12]), [*place, *size])
        if draw.random() < 0.2:
            entry["iscrowd"] = 1
        if draw.random() < 0.3:
            entry["segmentation"] = {"counts": "ab", "size": [3, 4]}
        elif draw.random() < 0.3:
            del entry["segmentation"]
        data["annotations"].append(entry)
    if text_ids:
        for entry in data["images"]:
            entry["id"] = f"img-{entry['id']}"
        for entry in data["annotations"]:
            entry["image_id"] = f"img-{entry['image_id']}"
    return dict(draw.sample(list(data.items()), len(data)))


@given(seed=st.integers(0, 10**6), policy=st.sampled_from(["error", "clip"]), text=st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_records_are_those_of_the_direct_loader(
    tmp_path: Path, seed: int, policy: str, text: bool
) -> None:
    data = mixed_content(seed, text_ids=text)
    path = tmp_path / f"{seed}-{text}.json"
    path.write_text(json.dumps(data, ensure_ascii=seed % 2 == 0, indent=seed % 3 or None))
    options = LoadOptions(bad_boxes=policy)
    direct = load_lvis_json(path, "root", options)
    found = indexed(path, options)
    assert list(found) == direct
    assert found[-1] == direct[-1]
    assert found[1:3] == direct[1:3]
    assert found.annotations.header["class_image_count"] == images_per_class(data, "x")
    ours, theirs = columns_of(found), columns_of(direct)
    np.testing.assert_array_equal(ours.heights_N, theirs.heights_N)
    np.testing.assert_array_equal(ours.widths_N, theirs.widths_N)
    np.testing.assert_array_equal(ours.masks_K, theirs.masks_K)
    np.testing.assert_array_equal(ours.teaches_N, theirs.teaches_N)
    assert list(ours.objects) == list(theirs.objects)
    assert list(ours.tags) == list(theirs.tags)
    with pytest.raises(IndexError):
        found[len(direct)]


BAD = [[1, 1, 0, 3], [1, 1, 3, -2], [40, 1, 2, 2], [1, 40, 2, 2]]


def test_bad_boxes_are_left_out_and_said_at_every_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = [box(n, 1, 10, found) for n, found in enumerate(BAD)]
    data = content([(8, 9)], [*annotations, box(50, 1, 11, [-2, 5, 4, 9])])
    path = write(tmp_path / "a.json", data)
    for policy, expected in (("drop", [[-2, 5, 4, 9]]), ("clip", [[0, 5, 2, 3]])):
        options = LoadOptions(bad_boxes=policy)
        for _ in range(2):
            caplog.clear()
            (record,) = indexed(path, options)
            assert [found["bbox"] for found in record["annotations"]] == expected
            assert "0 of image 1 (empty or negative)" in caplog.text
            assert "2 of image 1 (outside)" in caplog.text
    with pytest.raises(DatasetError, match="4 annotations with a bad box"):
        indexed(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("images"),
        lambda d: d.update(annotations={}),
        lambda d: d.update(categories=[]),
        lambda d: d["categories"].append({"id": 10, "name": "x"}),
        lambda d: d["images"].append(3),
        lambda d: d["annotations"].append([3]),
        lambda d: d["images"][1].update(id=1),
        lambda d: d["images"][1].update(id="b"),
        lambda d: d["images"][1].pop("width"),
        lambda d: d["images"][1].update(file_name="../1.png"),
        lambda d: d["images"][1].update(pos_category_ids=[10, 10]),
        lambda d: d["images"][1].update(pos_category_ids=[99]),
        lambda d: d["images"][1].update(pos_category_ids="10"),
        lambda d: d["images"][1].update(neg_category_ids=[99]),
        lambda d: d["images"][1].update(captions=["a", 3]),
        lambda d: d["images"][1].update(captions=["a", " "]),
        lambda d: d["annotations"][1].update(id=1),
        lambda d: d["annotations"][1].update(image_id=9),
        lambda d: d["annotations"][1].update(category_id=9),
        lambda d: d["annotations"][1].update(bbox=[1, 2, 3]),
        lambda d: d["annotations"][1].update(bbox=[1, 2, 3, math.nan]),
        lambda d: d["annotations"][1].update(segmentation=[[1, 2, 3]]),
    ],
)
def test_errors_are_those_of_the_direct_loader(tmp_path: Path, change: Any) -> None:
    data = content([(8, 9), (8, 9)], [box(1, 1, 10, [0, 0, 2, 2]), box(2, 2, 11, [0, 0, 2, 2])])
    change(data)
    path = write(tmp_path / "a.json", data)
    with pytest.raises(DatasetError) as direct:
        load_lvis_json(path, "root")
    with pytest.raises(DatasetError) as streamed:
        indexed(path)
    assert str(streamed.value) == str(direct.value)
    assert not list(tmp_path.glob("*.index"))


def test_missing_annotations_are_none(tmp_path: Path) -> None:
    data = content([(8, 9)])
    for change in (lambda d: d.pop("annotations"), lambda d: d.update(annotations=None)):
        changed = copy.deepcopy(data)
        change(changed)
        (record,) = indexed(write(tmp_path / "a.json", changed))
        assert record["annotations"] == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.json", mixed_content(3))


def builds(caplog: pytest.LogCaptureFixture, path: Path) -> int:
    """How often the file was read to open its index once more."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert len(open_index(path)) == 9
    return caplog.text.count("for the first time")


def test_the_second_start_reads_the_index(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert builds(caplog, path) == 1
    assert builds(caplog, path) == 0
    (kept,) = path.parent.glob("*.index")
    assert kept == index_places(path, LoadOptions())[0]
    # other options are another index
    open_index(path, LoadOptions(bad_boxes="drop"))
    assert len(list(path.parent.glob("*.index"))) == 2


def test_another_file_of_the_same_size_and_time_is_noticed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert builds(caplog, path) == 1
    before = path.stat()
    path.write_text(path.read_text().replace("owl", "elk"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert builds(caplog, path) == 1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert builds(caplog, path) == 1
    assert builds(caplog, path) == 0


@pytest.mark.parametrize("damage", ["flip", "header", "cut", "empty", "other", "version"])
def test_a_damaged_index_is_made_again(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = list(indexed(path))
    (kept,) = path.parent.glob("*.index")
    whole = bytearray(kept.read_bytes())
    if damage == "version":
        write_arrays(kept, {**read_header(kept), "version": 0}, map_arrays(kept))
    else:
        whole[-200 if damage == "flip" else 60] ^= 4
        kept.write_bytes({"cut": whole[:-300], "empty": b"", "other": b"x" * 99}.get(damage, whole))
    assert builds(caplog, path) == 1
    assert ("cannot be used" in caplog.text) == (damage != "version")
    assert builds(caplog, path) == 0
    assert list(indexed(path)) == expected


def test_an_index_goes_to_the_cache_where_its_place_cannot_be_written(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, cached = index_places(path, LoadOptions())
    beside.mkdir()  # root may write anywhere, but not a file over a folder
    assert builds(caplog, path) == 1
    assert cached.is_file()
    assert builds(caplog, path) == 0
    cached.unlink()
    cached.mkdir()
    for _ in range(2):
        assert builds(caplog, path) == 1
    assert "cannot be kept" in caplog.text
    assert "INDEX_FOLDER" in caplog.text
    # in memory it does the same, in other processes as well
    memory = indexed(path)
    assert list(pickle.loads(pickle.dumps(memory))) == load_lvis_json(path, "root")


def test_a_folder_for_indices_can_be_given(path: Path, tmp_path: Path) -> None:
    open_index(path, folder=tmp_path / "deep" / "indices")
    assert len(list((tmp_path / "deep" / "indices").iterdir())) == 1
    assert not list(path.parent.glob("*.index"))


def test_a_file_that_changes_during_training_is_noticed(path: Path) -> None:
    records = indexed(path)
    before = records[2]
    with path.open("r+b") as stream:  # in place, as some copying programs do
        stream.seek(records.annotations.arrays["image_offset"][2] + 3)
        stream.write(b"#")
    with pytest.raises(DatasetError, match="was changed after it was indexed .*start again"):
        records[2]
    # replaced by another file: those that are open go on with what they had
    write(path, mixed_content(3))
    again = indexed(path)
    assert again[2] == before
    path.rename(path.with_suffix(".old"))
    write(path, mixed_content(4))
    assert again[2] == before
    fresh = pickle.loads(pickle.dumps(again))
    with pytest.raises(DatasetError, match="was changed after"):
        fresh[2]


def test_pickled_records_take_the_name_of_the_index_along(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", mixed_content(5, images=1000))
    records = indexed(path)
    text = pickle.dumps(records)
    assert len(text) < 5000
    assert list(pickle.loads(text)) == list(records)
    (kept,) = tmp_path.glob("*.index")
    kept.unlink()
    with pytest.raises(DatasetError, match="index cannot be read"):
        pickle.loads(text)


def _put_record(records: IndexedRecords, answer: Any) -> None:
    answer.put(records[4])


def test_forked_processes_read_the_same_open_file(path: Path) -> None:
    records = indexed(path)
    expected = records[4]
    path.unlink()
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_put_record, args=(records, answer))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert answer.get() == expected


def test_links_are_looked_at_in_every_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", content([(8, 9), (8, 9)]))
    root = tmp_path / "root"
    root.mkdir()
    assert len(indexed(path, root=str(root))) == 2
    (root / "1.png").symlink_to("/etc/hostname")
    with pytest.raises(DatasetError, match=r"1 images are links that leave .*: 1\.png"):
        indexed(path, root=str(root))
    assert len(indexed(path, LoadOptions(allow_links=True), str(root))) == 2
    (root / "1.png").rename(root / "other.png")
    assert len(indexed(path, root=str(root))) == 2


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Path]:
    """Datasets idx_box and idx_tag with images."""
    boxes = content(
        [(12, 20), (20, 12), (14, 22), (22, 14)],
        [box(n, n, 10 + n % 3, [1, 1, 5 + n, 6]) for n in (1, 2, 4)],
    )
    tags = content([(12, 20)] * 5)
    for number, image in enumerate(tags["images"]):
        image["pos_category_ids"] = [10 + number % 2]
    for name, data in (("box", boxes), ("tag", tags)):
        spec = DatasetSpec(
            f"idx_{name}",
            "lvis" if name == "box" else "image_labels",
            images=str(tmp_path / name),
            json=str(write(tmp_path / f"{name}.json", data)),
            evaluator="lvis",
        )
        write_images(tmp_path / name, data)
        register_dataset(spec)
    yield tmp_path
    unregister("idx_box")
    unregister("idx_tag")


def test_joined_datasets_are_the_same_however_they_are_read(two: Path) -> None:
    names = ["idx_box", "idx_tag"]
    for filter_empty in (True, False):
        direct = join_datasets(names, filter_empty=filter_empty, indexing=Indexing(-1))
        found = join_datasets(names, filter_empty=filter_empty, indexing=ALWAYS)
        assert len(direct) == (8 if filter_empty else 9)
        assert list(found) == list(direct)
        assert list(found.shared()) == list(direct)
        assert list(pickle.loads(pickle.dumps(found.shared()))) == list(direct)
        assert found.sources_N.tolist() == [r["dataset_source"] for r in direct]
        assert list(found.of_source(1)) == list(direct.of_source(1))
    assert len(list(two.glob("*.index"))) == 2


def test_masks_are_asked_for_of_indexed_records_too(two: Path) -> None:
    found = join_datasets(["idx_box"], filter_empty=False, indexing=ALWAYS)
    check_masks(found, ["idx_box"], polygons=True)
    data = json.loads((two / "box.json").read_text())
    del data["annotations"][1]["segmentation"]
    write(two / "box.json", data)
    found = join_datasets(["idx_box"], filter_empty=False, indexing=ALWAYS)
    with pytest.raises(ConfigError, match="'idx_box', image 2: .*without a mask"):
        check_masks(found, ["idx_box"], polygons=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_do_not_depend_on_the_index(two: Path, workers: int) -> None:
    def batches(above_mb: int) -> list[Any]:
        cfg = get_config()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("idx_box",), ("idx_box",)
        cfg.DATASETS.INDEX_ABOVE_MB = above_mb
        cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
        cfg.DATALOADER.NUM_WORKERS = workers
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.SEED = 5
        found = [batch for batch, _ in zip(build_train_loader(cfg), range(6), strict=False)]
        found += list(build_test_loader(cfg, "idx_box"))
        return [
            [(s["image_id"], float(s["image"].sum()), str(s.get("instances"))) for s in batch]
            for batch in found
        ]

    plain = batches(-1)
    assert not list(two.glob("*.index"))
    assert batches(0) == plain
    assert len(list(two.glob("*.index"))) == 1


def test_the_switch_is_the_size_of_the_file(two: Path) -> None:
    size = (two / "box.json").stat().st_size / 1e6
    assert isinstance(load_dataset("idx_box", Indexing(size)), list)
    assert isinstance(load_dataset("idx_box", Indexing(size * 0.99)), IndexedRecords)
    assert isinstance(load_dataset("idx_box"), list)
    cfg = get_config()
    cfg.DATASETS.INDEX_ABOVE_MB = 7
    cfg.DATASETS.INDEX_FOLDER = "there"
    assert Indexing.from_config(cfg) == Indexing(7, "there")


def test_counts_of_large_files_come_from_the_index(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = MetadataCatalog.get("idx_tag").class_image_count
    assert [entry["image_count"] for entry in expected] == [3, 2, 0]
    write(two / "tag.json", json.loads((two / "tag.json").read_text()))
    monkeypatch.setattr("ext_common.data.indexing.Indexing.wanted_for", lambda *_: True)
    assert MetadataCatalog.get("idx_tag").class_image_count == expected
    assert len(list(two.glob("tag.json.*.index"))) == 1
    assert all(record["ann_type"] == "image" for record in load_dataset("idx_tag", ALWAYS))
    assert isinstance(DatasetCatalog.get("idx_tag"), list)


def test_array_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    arrays = {
        "empty": np.zeros(0, np.int32),
        "grid": np.arange(12, dtype=np.float32).reshape(3, 4),
        "one": np.array([7], np.uint8),
    }
    write_arrays(path, {"name": "ä"}, arrays)
    assert read_header(path) == {"name": "ä"}
    found = map_arrays(path)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype
        assert not found[name].flags.writeable
    whole = path.read_bytes()
    for place in range(0, len(whole) - 64, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            same = map_arrays(path)
        except ArrayFileError:
            continue
        # between the arrays nothing is stored
        assert all((same[name] == arrays[name]).all() for name in arrays)
    write_arrays(path, {}, {"objects": np.array(["text"])})
    with pytest.raises(ArrayFileError, match="an array of type"):
        map_arrays(path)
