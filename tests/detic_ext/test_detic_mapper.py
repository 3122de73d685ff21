from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

import detic_ext.data  # noqa: F401 - registers
from detic_ext.data.detic_mapper import build_detic_mapper
from ext_common.config import get_config
from ext_common.transforms import EfficientDetResizeCrop


@pytest.fixture
def cfg() -> Any:
    cfg = get_config()
    cfg.DATASETS.TRAIN = ("first", "second")
    cfg.DATALOADER.USE_DIFF_BS_SIZE = True
    cfg.DATALOADER.DATASET_ANN = ["box", "captiontag"]
    return cfg


def first_steps(cfg: Any) -> list[Any]:
    return [steps.augs[0] for steps in build_detic_mapper(cfg).augmentations]


def test_jitter_has_size_and_scale_of_its_dataset(cfg: Any) -> None:
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    cfg.DATALOADER.DATASET_INPUT_SIZE = [896, 448]
    cfg.DATALOADER.DATASET_INPUT_SCALE = [[0.1, 2.0], (0.5, 1.5)]
    steps = first_steps(cfg)
    assert all(isinstance(step, EfficientDetResizeCrop) for step in steps)
    assert [step.size for step in steps] == [896, 448]
    assert [tuple(step.scale) for step in steps] == [(0.1, 2.0), (0.5, 1.5)]


def test_shortest_edges_are_of_its_dataset(cfg: Any) -> None:
    cfg.INPUT.CUSTOM_AUG = "ResizeShortestEdge"
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.DATALOADER.DATASET_MIN_SIZES = [(640, 800), [320, 400]]
    cfg.DATALOADER.DATASET_MAX_SIZES = [1333, 667]
    steps = first_steps(cfg)
    assert all(isinstance(step, T.ResizeShortestEdge) for step in steps)
    assert [tuple(step.short_edge_length) for step in steps] == [(640, 800), (320, 400)]
    assert [step.max_size for step in steps] == [1333, 667]


def test_one_augmentation_without_own_sizes(cfg: Any) -> None:
    cfg.DATALOADER.USE_DIFF_BS_SIZE = False
    assert len(build_detic_mapper(cfg).augmentations) == 1


@pytest.mark.parametrize("with_labels", [True, False])
def test_kinds_of_annotation(cfg: Any, tmp_path: Path, with_labels: bool) -> None:
    cfg.WITH_IMAGE_LABELS = with_labels
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    Image.fromarray(np.zeros((8, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    record = {
        "file_name": str(tmp_path / "a.png"),
        "height": 8,
        "width": 9,
        "dataset_source": 1,
        "annotations": [],
        "captions": ["a black picture"],
    }
    sample = build_detic_mapper(cfg)(record)
    assert sample["ann_type"] == ("captiontag" if with_labels else "box")
    assert sample["pos_category_ids"] == []
    assert sample["captions"] == ["a black picture"]
