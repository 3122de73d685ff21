"""Copy-Paste as training data: masks, boxes, samplers, and the same samples after resuming."""

from __future__ import annotations

import json
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode

import frozen_backbone_ext  # noqa: F401 - registers its loaders
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import ConfigError
from ext_common.trainer import build_train_loader
from frozen_backbone_ext.data.jitter import LargeScaleJitter
from frozen_backbone_ext.data.paste import PasteRule, Scene, mask_boxes, paste, select_objects
from tests.dist.tiny_training import write_dataset


def _config(folder: Path, *opts: str, masks: bool = True) -> CfgNode:
    name = f"paste_{zlib.crc32(str(folder).encode())}"
    registry = write_dataset(folder / "data", name)
    if masks:
        path = folder / "data" / "instances.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        path.write_text(json.dumps(content))
    settings: dict[str, Any] = {
        "MODEL": {"DEVICE": "cpu", "MASK_ON": True, "PIXEL_MEAN": [10.0, 20.0, 30.0]},
        "DATASETS": {"REGISTRY": [str(registry)], "TRAIN": [name], "TEST": []},
        "DATALOADER": {"NUM_WORKERS": 0, "SAMPLER_TRAIN": "CopyPasteTrainingSampler"},
        "INPUT": {"TRAIN_SIZE": 96, "SCALE_RANGE": [0.5, 1.5]},
        "SOLVER": {"IMS_PER_BATCH": 2},
        "SEED": 3,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    cfg = load_config(file, opts)
    register_from_config(cfg)
    return cfg


def test_samples_are_consistent_and_survive_resuming(tmp_path: Path) -> None:
    cfg = _config(tmp_path)
    loader = build_train_loader(cfg)
    seen = list(islice(loader, 6))
    counts = []
    for sample in (s for batch in seen for s in batch):
        assert sample["image"].shape == (3, 96, 96)
        assert sample["image"].dtype == torch.uint8
        instances = sample["instances"]
        masks = instances.gt_masks.tensor
        assert masks.any(dim=(1, 2)).all()
        assert int(masks.sum(dim=0).max()) <= 1  # nothing is under two objects
        expected = mask_boxes(masks.numpy())
        np.testing.assert_allclose(instances.gt_boxes.tensor, expected, atol=1e-4)
        counts.append(len(instances))
    assert max(counts) > 2  # more than a picture has by itself
    again = build_train_loader(cfg)
    list(islice(again, 2))
    state = again.state_dict()
    resumed = build_train_loader(cfg)
    resumed.load_state_dict(state)
    for ours, theirs in zip(islice(resumed, 4), seen[2:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)


def test_options_of_the_loader(tmp_path: Path) -> None:
    never = _config(tmp_path, "INPUT.COPY_PASTE.PROB", "0.0", "MODEL.MASK_ON", "False")
    for batch in islice(build_train_loader(never), 4):
        for sample in batch:
            assert len(sample["instances"]) <= 2
            assert not sample["instances"].has("gt_masks")
    repeat = _config(
        tmp_path / "b",
        "DATALOADER.SAMPLER_TRAIN",
        "CopyPasteRepeatFactorTrainingSampler",
        "INPUT.COPY_PASTE.BOX_RULE",
        "coord",
        "INPUT.COPY_PASTE.BLEND",
        "gaussian",
    )
    assert len(next(iter(build_train_loader(repeat)))) == 2
    with pytest.raises(ConfigError, match="'both' is not known"):
        build_train_loader(_config(tmp_path / "c", "INPUT.COPY_PASTE.BOX_RULE", "both"))


def test_objects_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    counts = []
    for limit in ("0", "1"):
        cfg = _config(tmp_path / limit, "INPUT.MAX_INSTANCES", limit)
        batches = islice(build_train_loader(cfg), 4)
        counts.append([len(sample["instances"]) for batch in batches for sample in batch])
    unlimited, limited = counts
    assert max(unlimited) > 2
    assert limited == [min(count, 1) for count in unlimited]
    plain = ["DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "INPUT.MAX_INSTANCES", "1"]
    cfg = _config(tmp_path / "plain", *plain, "INPUT.CUSTOM_AUG", "EfficientDetResizeCrop")
    assert [len(sample["instances"]) for sample in next(iter(build_train_loader(cfg)))] == [1, 1]


def test_data_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="box without one"):
        build_train_loader(_config(tmp_path, "MODEL.MASK_ON", "False", masks=False))


def test_padding_is_the_pixel_mean() -> None:
    jitter = LargeScaleJitter(64, (0.2, 0.2), flip=0.0, pad_colour=(10.0, 20.4, 30.0))
    image = np.full((32, 40, 3), 200, dtype=np.uint8)
    canvas = jitter.get_transform(image).apply_image(image)
    assert canvas.shape == (64, 64, 3)
    assert canvas[-1, -1].tolist() == [10, 20, 30]
    assert canvas[0, 0].tolist() == [200, 200, 200]
    with pytest.raises(ConfigError, match="size 0"):
        LargeScaleJitter(0)


def _scene(*boxes: tuple[int, int, int, int], size: int = 40, shade: int = 0) -> Scene:
    masks = np.zeros((len(boxes), size, size), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    image = np.full((size, size, 3), shade, dtype=np.uint8)
    return Scene(image, masks, np.array(boxes, dtype=np.float32), np.arange(len(boxes)))


def test_hidden_objects_go_and_small_changes_stay() -> None:
    destination = _scene((0, 0, 8, 8), (10, 0, 38, 20), (0, 25, 30, 40))
    source = _scene((0, 0, 9, 9), (10, 0, 33, 20), (2, 25, 30, 26), shade=9)
    result = paste(destination, source, np.array([0, 1, 2]), PasteRule(box_rule="coord"))
    # hidden near the origin; occluded with few pixels left; one row gone
    assert result.keep_O.tolist() == [False, False, True]
    assert result.scene.boxes_O4[0].tolist() == [0, 25, 30, 40]
    assert result.scene.labels_O.tolist() == [2, 0, 1, 2]
    assert result.scene.image_HWC[0, 0, 0] == 9
    nothing = paste(destination, source, np.array([], dtype=int))
    assert nothing.scene is destination
    with pytest.raises(ConfigError, match="same canvas"):
        paste(destination, _scene((0, 0, 2, 2), size=20), np.array([0]))


def test_every_number_of_objects_is_drawn() -> None:
    generator = np.random.default_rng(0)
    draws = [select_objects(3, generator) for _ in range(300)]
    assert {len(draw) for draw in draws} == {0, 1, 2, 3}
    assert {index for draw in draws for index in draw.tolist()} == {0, 1, 2}
    assert max(len(select_objects(9, generator, most=2)) for _ in range(50)) == 2
