from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from ext_common.config import get_config
from ext_common.data import records as records_module
from ext_common.data.batching import BatchPlan, Ticket
from ext_common.data.dataset_registry import register_dataset, unregister
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.fetching import SampleFetcher, own_randomness
from ext_common.data.loader import (
    TrainLoader,
    build_test_loader,
    build_train_loader,
    make_train_loader,
)
from ext_common.data.sampling import PermutationStream
from ext_common.errors import ConfigError, DatasetError, ImageError
from ext_common.images import BadSamplePolicy
from tests.ext_common.annotation_files import box, content, write, write_images

SIZES = [(20, 30), (30, 20), (20, 30), (24, 24), (20, 32), (40, 20), (18, 30)]


def draws(record: Mapping[str, Any]) -> dict[str, Any]:
    """A mapper that returns what the three global generators give."""
    if record.get("bad"):
        raise ImageError("broken", where=str(record["id"]))
    numbers = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    return {"id": record["id"], "numbers": numbers}


def fetch_loader(
    count: int = 9, *, workers: int = 0, seed: int = 3, rank: int = 0, processes: int = 1
) -> TrainLoader:
    groups = np.arange(count) % 2
    fetcher = SampleFetcher([{"id": n} for n in range(count)], draws, seed=seed, groups_N=groups)
    plan = BatchPlan(PermutationStream(count, seed), groups, [2, 2], processes=processes)
    return TrainLoader(fetcher, plan, rank=rank, num_workers=workers)


def take(loader: TrainLoader, count: int) -> list[list[dict[str, Any]]]:
    return list(islice(loader, count))


def test_samples_do_not_depend_on_the_number_of_workers() -> None:
    expected = take(fetch_loader(), 12)
    for workers in (1, 2):
        assert take(fetch_loader(workers=workers), 12) == expected
    numbers = [sample["numbers"] for batch in expected for sample in batch]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_it_was_saved(workers: int) -> None:
    whole = take(fetch_loader(), 15)
    first = fetch_loader(workers=workers)
    iterator = iter(first)
    assert [next(iterator) for _ in range(6)] == whole[:6]
    state = first.state_dict()
    second = fetch_loader(workers=workers, seed=99)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert take(second, 9) == whole[6:]


def test_the_state_is_that_of_the_batches_handed_out() -> None:
    ahead, behind = fetch_loader(workers=2), fetch_loader()
    for loader in (ahead, behind):
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
    assert ahead.state_dict() == behind.state_dict()
    with pytest.raises(RuntimeError, match="after the first batch"):
        ahead.load_state_dict(behind.state_dict())


def test_an_iterator_that_is_made_early_takes_a_state_that_comes_later() -> None:
    # detectron2 0.6's trainer makes its iterator before a checkpoint is loaded
    saved = fetch_loader()
    whole = take(saved, 5)
    loader = fetch_loader(seed=99)
    iterator = iter(loader)
    loader.load_state_dict(saved.state_dict())
    assert next(iterator) == take(fetch_loader(), 6)[5]
    assert next(iterator) not in whole


def test_processes_divide_a_step() -> None:
    one = take(fetch_loader(), 4)
    parts = [fetch_loader(processes=2, rank=rank) for rank in (0, 1)]
    states = []
    for loader in parts:
        loader._plan.batch_sizes_G = (1, 1)
        states.append(take(loader, 4))
    joined = [a + b for a, b in zip(*states, strict=True)]
    assert joined == one
    assert parts[0].state_dict() == parts[1].state_dict()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_draws_go_on_as_if_nothing_was_loaded(workers: int) -> None:
    def after(loaded: int) -> tuple[Any, ...]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        take(fetch_loader(workers=workers), loaded)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    assert after(0) == after(3)


def test_randomness_is_of_the_sample_and_attempt() -> None:
    def drawn(*key: int) -> float:
        with own_randomness(*key):
            return float(np.random.rand())  # noqa: NPY002

    assert drawn(1, 2) == drawn(1, 2, 0)
    assert len({drawn(1, 2), drawn(1, 3), drawn(2, 2), drawn(1, 2, 1)}) == 4


def fetcher_of(bad: set[int], policy: BadSamplePolicy, count: int = 6) -> SampleFetcher:
    rows = [{"id": n, "bad": n in bad, "file_name": f"{n}.jpg"} for n in range(count)]
    return SampleFetcher(rows, draws, seed=0, groups_N=np.arange(count) % 2, policy=policy)


def test_a_bad_sample_is_replaced_by_the_next_of_its_group() -> None:
    policy = BadSamplePolicy("skip")
    fetcher = fetcher_of({1, 3, 4}, policy)
    found = [fetcher[Ticket(0, n)] for n in range(6)]
    assert [sample["id"] for sample in found] == [0, 5, 2, 5, 0, 5]  # type: ignore[index]
    assert (policy.skipped, policy.attempts) == (4, 10)


def test_policies_stop_with_the_name_of_the_file() -> None:
    error = fetcher_of({3}, BadSamplePolicy("raise"))[Ticket(0, 3)]
    assert isinstance(error, ImageError)
    assert str(error) == "3: broken"
    error = fetcher_of({3}, BadSamplePolicy("skip", limit=0.0, grace=0))[Ticket(0, 3)]
    assert isinstance(error, DatasetError)
    error = fetcher_of({1, 3, 5}, BadSamplePolicy("skip", limit=1.0))[Ticket(0, 3)]
    assert isinstance(error, DatasetError)
    assert "none of the samples can be read" in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_workers_arrive_whole(workers: int) -> None:
    fetcher = fetcher_of({2}, BadSamplePolicy("raise"))
    plan = BatchPlan(PermutationStream(6, 0), np.arange(6) % 2, [2, 2])
    with pytest.raises(ImageError) as caught:
        take(TrainLoader(fetcher, plan, num_workers=workers), 10)
    assert str(caught.value) == "2: broken"


def test_skips_of_workers_are_counted_in_the_main_process() -> None:
    policy = BadSamplePolicy("skip")
    plan = BatchPlan(PermutationStream(6, 0), np.arange(6) % 2, [2, 2])
    loader = TrainLoader(fetcher_of({2}, policy), plan, num_workers=2)
    found = [sample["id"] for batch in take(loader, 12) for sample in batch]
    assert 2 not in found
    assert loader.policy.skipped > 0


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    boxes = [box(n, n, 10 + n % 2, [1, 1, 9, 9]) for n in range(1, 7)]
    data = content(SIZES, boxes)
    write_images(tmp_path / "images", data)
    register_dataset(
        DatasetSpec(
            name="loader_set",
            type="lvis",
            images=str(tmp_path / "images"),
            json=str(write(tmp_path / "a.json", data)),
            evaluator="lvis",
        )
    )
    yield "loader_set"
    unregister("loader_set")


def config(name: str) -> Any:
    cfg = get_config()
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.TEST = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    cfg.INPUT.TRAIN_SIZE = 16
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 4
    return cfg


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_training_loader_of_a_config(dataset: str, sampler: str) -> None:
    cfg = config(dataset)
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    batches = take(build_train_loader(cfg), 9)
    again = take(build_train_loader(cfg), 9)
    for batch, other in zip(batches, again, strict=True):
        assert len(batch) == 2
        # one aspect in a batch, and the image without boxes (number 7) never
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        assert all(1 <= sample["image_id"] <= 6 for sample in batch)
        assert [s["image_id"] for s in batch] == [s["image_id"] for s in other]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(batch, other, strict=True))
    assert {sample["ann_type"] for batch in batches for sample in batch} == {"box"}


def test_images_without_boxes_are_kept_where_asked(
    dataset: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(dataset)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    with caplog.at_level("INFO"):
        loader = build_train_loader(cfg)
    assert len(loader.fetcher) == 7
    assert "1 images without labels are kept" in caplog.text
    found = {sample["image_id"] for batch in take(loader, 7) for sample in batch}
    assert found == set(range(1, 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_test_loader_gives_every_image_once_in_order(dataset: str, workers: int) -> None:
    cfg = config(dataset)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TEST = 16
    loader = build_test_loader(cfg, dataset, batch_size=3)
    assert len(loader) == 3
    batches = list(loader)
    assert [[s["image_id"] for s in batch] for batch in batches] == [[1, 2, 3], [4, 5, 6], [7]]
    assert "instances" not in batches[0][0]


def test_a_bad_image_stops_an_evaluation(dataset: str) -> None:
    cfg = config(dataset)
    record = DatasetCatalog.get(dataset)[2]
    Path(record["file_name"]).write_bytes(b"\xff\xd8\xff not a picture")
    with pytest.raises(ImageError, match=r"3\.png"):
        list(build_test_loader(cfg, dataset))


def test_impossible_settings_are_named(dataset: str) -> None:
    cfg = config(dataset)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSampler"
    with pytest.raises(ConfigError, match="unknown sampler 'RandomSampler'.*TrainingSampler"):
        build_train_loader(cfg)
    cfg = config(dataset)
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(ConfigError, match=r"MODEL\.LOAD_PROPOSALS: not supported"):
        build_train_loader(cfg)
    cfg = config("loader_sett")
    with pytest.raises(
        DatasetError, match="unknown dataset 'loader_sett'.*did you mean loader_set"
    ):
        build_train_loader(cfg)
    cfg = config(dataset)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match="no training datasets"):
        build_train_loader(cfg)


def test_batches_smaller_than_the_processes_are_refused(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ext_common.data.loader.comm.get_world_size", lambda: 4)
    with pytest.raises(ConfigError, match="IMS_PER_BATCH 2 is less than one image for each of 4"):
        build_train_loader(config(dataset))


def test_masks_are_asked_for_before_training() -> None:
    found = [{"image_id": 5, "dataset_source": 0, "annotations": [{"bbox": [0, 0, 1, 1]}]}]
    with pytest.raises(ConfigError, match="dataset 'a', image 5: .*box without a mask"):
        records_module.check_masks(found, ["a"], polygons=True)
    found[0]["annotations"] = [{"segmentation": {"counts": "x", "size": [1, 1]}}]
    records_module.check_masks(found, ["a"], polygons=False)
    with pytest.raises(ConfigError, match="run-length encoded"):
        records_module.check_masks(found, ["a"], polygons=True)


def test_whole_datasets_may_lack_masks_where_that_is_said() -> None:
    def record(source: int, *masks: Any) -> dict[str, Any]:
        return {"dataset_source": source, "annotations": [{"segmentation": m} for m in masks]}

    polygon = [[0, 0, 1, 0, 1, 1]]

    def check(*found: dict[str, Any], some_without: bool = True) -> None:
        records_module.check_masks(found, "ab", polygons=True, some_without=some_without)

    check(record(0, polygon), record(1, None))
    for found, allowed in (
        ([record(0, polygon), record(1, None)], False),
        ([record(0, polygon, None)], True),
        ([record(0, None), record(1)], True),
    ):
        with pytest.raises(ConfigError, match="without a mask"):
            check(*found, some_without=allowed)


def test_datasets_without_usable_images_are_named() -> None:
    DatasetCatalog.register("loader_empty", list)
    DatasetCatalog.register("loader_crowd", lambda: [{"annotations": [{"iscrowd": 1}]}])
    try:
        with pytest.raises(DatasetError, match="'loader_empty': no images"):
            records_module.join_datasets(["loader_empty"], filter_empty=False)
        with pytest.raises(DatasetError, match="none of the 1 images has an annotation"):
            records_module.join_datasets(["loader_crowd"], filter_empty=True)
        assert len(records_module.join_datasets(["loader_crowd"], filter_empty=False)) == 1
    finally:
        DatasetCatalog.remove("loader_empty")
        DatasetCatalog.remove("loader_crowd")


def test_grouping_needs_sizes() -> None:
    with pytest.raises(DatasetError, match="image 3 has no width and height"):
        records_module.aspects([{"image_id": 3, "file_name": "x.jpg"}])


def test_a_random_seed_is_kept_in_the_state(dataset: str) -> None:
    cfg = config(dataset)
    cfg.SEED = -1
    first = build_train_loader(cfg)
    assert first.state_dict()["seed"] == first.fetcher.seed
    second = make_train_loader(cfg, DatasetCatalog.get(dataset)[:6], draws, first._plan)
    second.load_state_dict(first.state_dict())
    assert second.fetcher.seed == first.fetcher.seed
