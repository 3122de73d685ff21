"""Batches of boxes and of image labels in tar archives, as ImageNet-21k is trained on (6.1, 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

import detic_ext.data  # noqa: F401 - registers
from detic_ext.data.multi_dataset_loader import SAMPLER_NAME, build_multi_dataset_loader
from ext_common.config import get_config
from ext_common.data.dataset_registry import register_dataset, unregister
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.loader import TrainLoader
from ext_common.errors import DatasetError, ImageError
from ext_common.images import read_image
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.ext_common.tar_files import jpeg, write_tar

SIZES = [(20, 30), (24, 30), (18, 26), (16, 40)]
"""(height, width) of the files in the archives: two in each of the classes 1 and 2."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Datasets tt_boxes (files) and tt_tars (archives n0.tar and n1.tar, listed in tars.txt)."""
    boxes = content([(30, 40)] * 3, [box(n, n, 10, [2, 2, 10, 10]) for n in (1, 2, 3)])
    write(tmp_path / "boxes.json", boxes)
    write_images(tmp_path / "images", boxes)
    members = [jpeg(seed, size) for seed, size in enumerate(SIZES)]
    for tar in (0, 1):
        files = {f"{tar}_{n}.JPEG": members[2 * tar + n] for n in (0, 1)}
        write_tar(tmp_path / f"n{tar}.tar", files)
    (tmp_path / "tars.txt").write_text("n0.tar\nn1.tar\n")
    tags = content(SIZES)
    for index, image in enumerate(tags["images"]):
        del image["file_name"]
        image.update(tar_index=index, pos_category_ids=[11 + index // 2])
    write(tmp_path / "tars.json", tags)
    for name, images in (("boxes", tmp_path / "images"), ("tars", tmp_path)):
        json = str(tmp_path / f"{name}.json")
        register_dataset(DatasetSpec(f"tt_{name}", "lvis", images=str(images), json=json))
    yield tmp_path
    unregister("tt_boxes")
    unregister("tt_tars")


def config(folder: Path, *, workers: int = 0, policy: str = "raise") -> CfgNode:
    cfg = get_config()
    cfg.SEED = 3
    cfg.MODEL.MASK_ON = False
    cfg.WITH_IMAGE_LABELS = True
    cfg.DATASETS.TRAIN = ("tt_boxes", "tt_tars")
    loader = cfg.DATALOADER
    loader.SAMPLER_TRAIN = SAMPLER_NAME
    loader.NUM_WORKERS = workers
    loader.MULTI_DATASET_GROUPING = True
    loader.FILTER_EMPTY_ANNOTATIONS = False
    loader.DATASET_ANN = ["box", "image"]
    loader.USE_DIFF_BS_SIZE = True
    loader.DATASET_BS = [2, 3]
    loader.DATASET_INPUT_SIZE = [32, 16]
    loader.DATASET_INPUT_SCALE = [(1.0, 1.0), (1.0, 1.0)]
    loader.USE_TAR_DATASET = True
    loader.TARFILE_PATH = str(folder / "tars.txt")
    loader.TAR_INDEX_DIR = str(folder / "index")
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    cfg.INPUT.BAD_SAMPLE_POLICY = policy
    return cfg


def batches(loader: TrainLoader, count: int = 8) -> list[list[dict[str, Any]]]:
    return list(islice(loader, count))


def open_archives(loader: TrainLoader) -> int:
    """Archives that are open in this process."""
    mapper: Any = loader.fetcher.mapper
    return len(mapper.read_record.dataset._archives._open)


def test_archives_and_files_train_together_with_any_number_of_workers(folder: Path) -> None:
    here, forked = (build_multi_dataset_loader(config(folder, workers=n)) for n in (0, 2))
    assert open_archives(here) == 0  # opened by who reads first
    found, same = batches(here), batches(forked)
    assert open_archives(here) == 2
    assert open_archives(forked) == 0  # its workers have opened theirs

    assert {batch[0]["dataset_source"] for batch in found} == {0, 1}
    for batch, again in zip(found, same, strict=True):
        (source,) = {sample["dataset_source"] for sample in batch}
        assert len(batch) == [2, 3][source]
        assert {sample["ann_type"] for sample in batch} == {["box", "image"][source]}
        for sample, twin in zip(batch, again, strict=True):
            assert torch.equal(sample["image"], twin["image"])
            if source:
                index = sample["tar_index"]
                assert index == twin["tar_index"]
                assert (sample["height"], sample["width"]) == SIZES[index]
                assert sample["pos_category_ids"] == [1 + index // 2]
                assert max(sample["image"].shape[1:]) == 16
            else:
                assert len(sample["instances"]) == 1


def test_pixels_are_those_of_the_archive(folder: Path) -> None:
    cfg = config(folder)
    cfg.INPUT.CUSTOM_AUG = "ResizeShortestEdge"
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = build_multi_dataset_loader(cfg).fetcher.mapper
    augmentations: Any = mapper
    augmentations.augmentations = [augmentations.augmentations[0].__class__([])]
    sample = mapper({"image_id": 9, "tar_index": 2, "dataset_source": 1, "height": 18, "width": 26})
    expected_HWC = read_image(jpeg(2, SIZES[2]), format=cfg.INPUT.FORMAT)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), expected_HWC)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_never_replaced_by_a_made_up_picture(folder: Path, workers: int) -> None:
    write_tar(folder / "n1.tar", {"1_0.JPEG": b"no picture", "1_1.JPEG": jpeg(3, SIZES[3])})

    with pytest.raises(ImageError, match=r"n1\.tar:1_0\.JPEG"):
        batches(build_multi_dataset_loader(config(folder, workers=workers)), 20)

    loader = build_multi_dataset_loader(config(folder, workers=workers, policy="skip"))
    loader.policy.grace = 1_000  # a tiny dataset meets its bad file often
    read = [sample for batch in batches(loader) for sample in batch]
    assert {sample["tar_index"] for sample in read if sample["dataset_source"]} == {0, 1, 3}
    assert loader.policy.skipped > 0


def test_without_the_key_such_records_are_an_error(folder: Path) -> None:
    cfg = config(folder)
    cfg.DATALOADER.USE_TAR_DATASET = False
    with pytest.raises(DatasetError, match="records with a tar_index need the tar files"):
        batches(build_multi_dataset_loader(cfg), 20)
