from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray

import detic_ext.data  # noqa: F401 - registers
from detic_ext.data.builtin import register_builtin_datasets
from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.multi_dataset_loader import (
    SAMPLER_NAME,
    build_multi_dataset_loader,
    groups_of,
)
from detic_ext.data.multi_dataset_sampler import multi_dataset_weights, source_repeat_factors
from ext_common.config import get_config
from ext_common.data.batching import BatchPlan
from ext_common.data.dataset_registry import register_dataset, unregister
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.records import aspects, sources
from ext_common.data.sampling import IndexStream
from ext_common.errors import ConfigError, DatasetError
from ext_common.registries import TRAIN_LOADER_REGISTRY
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.golden_cases import golden_arrays, golden_root


class InOrder(IndexStream):
    """0, 1, ..., size - 1 and again."""

    def chunk(self, number: int) -> NDArray[np.int64]:
        return np.arange(self.size)

    def locate(self, position: int) -> tuple[int, int]:
        return divmod(position, self.size)


@pytest.mark.golden
def test_golden_sampling_weights() -> None:
    case = golden_arrays("detic", "sampler_weights.npz")
    dicts = json.loads(str(case["dicts_json"]))
    sources_N = np.array([entry["dataset_source"] for entry in dicts])
    boxes = [
        {"annotations": [{"category_id": c} for c in entry["cats"]]}
        for entry in dicts
        if entry["dataset_source"] == 0
    ]
    tags = [{"pos_category_ids": e["cats"]} for e in dicts if e["dataset_source"] == 1]
    factors = [
        source_repeat_factors(records, kind, float(case["repeat_threshold"]))
        for records, kind in ((boxes, "box"), (tags, "image"))
    ]
    keys = [key for key in case if key.startswith("weights_r")]
    assert keys
    for key in keys:
        *ratios, flags = key.removeprefix("weights_r").split("_")
        used = [f if flag == "T" else None for f, flag in zip(factors, flags, strict=True)]
        weights_N = multi_dataset_weights(sources_N, [float(r) for r in ratios], used)
        np.testing.assert_allclose(weights_N, case[key], rtol=1e-4, err_msg=key)


def emitted(stream: list[dict[str, Any]], sizes_S: list[int]) -> list[list[int]]:
    """Batches that are complete when the stream has ended once."""
    groups_N = groups_of(sources(stream), aspects(stream))
    sizes_G = np.repeat(sizes_S, 2).tolist()
    plan = BatchPlan(InOrder(len(stream), 0), groups_N, sizes_G)
    found = []
    for (batch,), state in plan.steps():
        if state.position > len(stream):
            return found
        found.append([stream[ticket.record]["i"] for ticket in batch])
    raise AssertionError("a plan has no end")


@pytest.mark.golden
def test_golden_batches() -> None:
    case = json.loads((golden_root() / "detic" / "data_tools.json").read_text())
    stream = case["batch_in"]
    count = 1 + max(item["dataset_source"] for item in stream)
    for key, expected in case.items():
        if key.startswith("batch_diff_bs_"):
            sizes = [int(size) for size in key.removeprefix("batch_diff_bs_").split("_")]
        elif key.startswith("batch_same_bs_"):
            sizes = [int(key.removeprefix("batch_same_bs_"))] * count
        else:
            continue
        assert emitted(stream, sizes) == expected, key


def test_shares_follow_the_ratios_whatever_sizes_and_factors() -> None:
    sources_N = np.repeat([0, 1, 2], [3, 50, 7])
    factors = [np.array([1.0, 5.0, 2.0]), None, np.linspace(1, 3, 7)]
    weights_N = multi_dataset_weights(sources_N, [1, 4, 2], factors)
    shares = np.bincount(sources_N, weights_N) / weights_N.sum()
    np.testing.assert_allclose(shares, [1 / 7, 4 / 7, 2 / 7])
    np.testing.assert_allclose(weights_N[:3] / weights_N[0], [1, 5, 2])


def test_impossible_mixes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"DATALOADER\.DATASET_RATIO: ratios \[1, -1\]"):
        multi_dataset_weights(np.array([0, 1]), [1, -1], [None, None])
    with pytest.raises(ConfigError, match="are not shares"):
        multi_dataset_weights(np.array([0, 1]), [0, 0], [None, None])
    with pytest.raises(DatasetError, match="training dataset 1 has no images"):
        multi_dataset_weights(np.array([0, 0]), [1, 1], [None, None])


BOX_SIZES = [(20, 30), (30, 20), (21, 30), (24, 24), (20, 32), (40, 20)]
LABEL_SIZES = [(16, 12), (12, 16)] * 5


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Any]:
    """A config with a box set and an image-label set."""
    boxes = content(BOX_SIZES, [box(n, n, 10 + n % 2, [1, 1, 9, 9]) for n in range(1, 7)])
    labels = content(LABEL_SIZES)
    for image in labels["images"]:
        image["pos_category_ids"] = [10 + image["id"] % 3]
    for name, kind, data in (("mix_box", "lvis", boxes), ("mix_tag", "image_labels", labels)):
        write_images(tmp_path / name, data)
        path = write(tmp_path / f"{name}.json", data)
        register_dataset(
            DatasetSpec(name=name, type=kind, images=str(tmp_path / name), json=str(path))
        )
    cfg = get_config()
    cfg.DATASETS.TRAIN = ("mix_box", "mix_tag")
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    cfg.WITH_IMAGE_LABELS = True
    cfg.SEED = 7
    cfg.SOLVER.IMS_PER_BATCH = 4
    loader = cfg.DATALOADER
    loader.NUM_WORKERS = 0
    loader.SAMPLER_TRAIN = SAMPLER_NAME
    loader.FILTER_EMPTY_ANNOTATIONS = False
    loader.MULTI_DATASET_GROUPING = True
    loader.USE_DIFF_BS_SIZE = True
    loader.DATASET_ANN = ["box", "image"]
    loader.DATASET_RATIO = [1, 4]
    loader.DATASET_BS = [2, 4]
    loader.DATASET_INPUT_SIZE = [16, 8]
    loader.DATASET_INPUT_SCALE = [(1.0, 1.0), (1.0, 1.0)]
    loader.USE_RFS = [True, False]
    yield cfg
    unregister("mix_box")
    unregister("mix_tag")


def test_batches_have_one_dataset_with_its_size_and_input(mixed: Any) -> None:
    build = TRAIN_LOADER_REGISTRY.get(SAMPLER_NAME)
    assert build is build_multi_dataset_loader
    batches = list(islice(build(mixed), 120))
    kinds = Counter(batch[0]["ann_type"] for batch in batches)
    for batch in batches:
        source = batch[0]["dataset_source"]
        assert {sample["dataset_source"] for sample in batch} == {source}
        assert {sample["ann_type"] for sample in batch} == {["box", "image"][source]}
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        assert len(batch) == [2, 4][source]
        assert all(max(sample["image"].shape) == [16, 8][source] for sample in batch)
        assert all(bool(len(sample["instances"])) == (source == 0) for sample in batch)
        assert all(bool(sample["pos_category_ids"]) == (source == 1) for sample in batch)
    # shares 1 : 4 in batches of 2 and 4 are steps of 1 : 2
    assert 0.2 < kinds["box"] / len(batches) < 0.5


def test_one_batch_size_for_all_datasets(mixed: Any) -> None:
    mixed.DATALOADER.USE_DIFF_BS_SIZE = False
    mixed.INPUT.TRAIN_SIZE = 10
    mixed.INPUT.SCALE_RANGE = (1.0, 1.0)
    for batch in islice(build_multi_dataset_loader(mixed), 20):
        assert len(batch) == 4
        assert len({sample["dataset_source"] for sample in batch}) == 1
        assert all(max(sample["image"].shape) == 10 for sample in batch)


def test_without_grouping_a_batch_mixes_datasets(mixed: Any) -> None:
    mixed.DATALOADER.MULTI_DATASET_GROUPING = False
    batches = list(islice(build_multi_dataset_loader(mixed), 20))
    assert {len(batch) for batch in batches} == {4}
    assert any(len({sample["dataset_source"] for sample in batch}) == 2 for batch in batches)


@pytest.mark.parametrize("same", [True, False])
def test_two_processes(mixed: Any, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    mixed.DATALOADER.SAME_DATASET_PER_STEP = same
    monkeypatch.setattr("ext_common.data.loader.comm.get_world_size", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr("ext_common.data.loader.comm.get_rank", lambda rank=rank: rank)
        found.append(list(islice(build_multi_dataset_loader(mixed), 25)))
    pairs = [(a[0]["dataset_source"], b[0]["dataset_source"]) for a, b in zip(*found, strict=True)]
    assert {len(batch) for batches in found for batch in batches} == {2, 4}
    assert any(a != b for a, b in pairs) != same


def test_a_mixed_run_continues_exactly(mixed: Any) -> None:
    def ids(batches: Any) -> list[Any]:
        return [
            [(s["dataset_source"], s["image_id"], s["image"].sum()) for s in b] for b in batches
        ]

    whole = ids(islice(build_multi_dataset_loader(mixed), 12))
    first = build_multi_dataset_loader(mixed)
    list(islice(first, 5))
    second = build_multi_dataset_loader(mixed)
    second.load_state_dict(first.state_dict())
    assert ids(islice(second, 7)) == whole[5:]


def test_published_names_are_registered_without_files() -> None:
    for name in ("lvis_v1_train_norare", "imagenet_lvis_v1", "cc3m_v1_train_tags"):
        assert len(MetadataCatalog.get(name).thing_classes) == 1203
    assert len(MetadataCatalog.get("coco_caption_train_tags").thing_classes) == 80
    assert MetadataCatalog.get("oid_train").evaluator_type == "oid"
    assert register_builtin_datasets("elsewhere") == []


def test_classes_that_stand_in_the_file_alone_are_read_when_asked_for(tmp_path: Path) -> None:
    name = "lvis_v1_train_22k"
    published = DatasetCatalog[name]
    unregister(name)
    try:
        assert register_builtin_datasets(str(tmp_path)) == [name]
        with pytest.raises(DatasetError, match=r"lvis_v1_train_lvis-22k\.json: .*cannot be read"):
            MetadataCatalog.get(name).thing_classes  # noqa: B018
        empty_box = box(1, 1, 10, [3, 3, 0, 2])
        data = content([(8, 9)], [empty_box, box(2, 1, 11, [1, 1, 2, 2])])
        data["images"][0]["file_name"] = "COCO_train2014_000000000001.jpg"
        write(tmp_path / "lvis" / "lvis_v1_train_lvis-22k.json", data)
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog", "owl"]
        (record,) = DatasetCatalog.get(name)
        assert record["file_name"] == str(tmp_path / "coco" / "000000000001.jpg")
        assert [a["category_id"] for a in record["annotations"]] == [1]
    finally:
        unregister(name)
        register_dataset(published)


def test_the_split_of_coco() -> None:
    assert (len(BASE_IDS), len(NOVEL_IDS)) == (48, 17)
    metadata = MetadataCatalog.get("coco_generalized_zeroshot_val")
    groups = metadata.class_groups
    assert groups["base"][:2] == ["person", "bicycle"]
    assert groups["novel"][-1] == "scissors"
    assert not set(groups["base"]) & set(groups["novel"])
    assert {*groups["base"], *groups["novel"]} < set(metadata.thing_classes)
