from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as coco_mask

from ext_common.config import get_config
from ext_common.data.mapper import DetectionMapper
from ext_common.errors import ConfigError, DatasetError, ImageError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def rectangle(
    x: float, y: float, w: float, h: float, label: int = 1, **more: Any
) -> dict[str, Any]:
    return {
        "bbox": [x, y, w, h],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": label,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        **more,
    }


def run_lengths(bits_HW: np.ndarray[Any, Any]) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(bits_HW))


def record_of(picture: Path, *annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "file_name": str(picture),
        "height": 40,
        "width": 60,
        "image_id": 7,
        "annotations": list(annotations),
        **more,
    }


def mapper(*steps: Any, **more: Any) -> DetectionMapper:
    arguments: dict[str, Any] = {"is_train": True, "augmentations": [steps]}
    return DetectionMapper(**{**arguments, **more})


def test_training_sample(picture: Path) -> None:
    record = record_of(
        picture,
        rectangle(10, 5, 20, 30, label=4),
        rectangle(0, 0, 5, 5, iscrowd=1),
        captions=["a"],
        neg_category_ids=[3],
    )
    before = copy.deepcopy(record)
    sample = mapper()(record)
    assert record == before
    assert "annotations" not in sample
    rgb = np.asarray(Image.open(picture))
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), rgb[:, :, ::-1])
    instances = sample["instances"]
    assert instances.image_size == (40, 60)
    assert instances.gt_boxes.tensor.tolist() == [[10, 5, 30, 35]]
    assert instances.gt_classes.tolist() == [4]
    assert not instances.has("gt_masks")
    assert sample["ann_type"] == "box"
    assert (sample["dataset_source"], sample["pos_category_ids"]) == (0, [])
    assert (sample["height"], sample["width"], sample["image_id"]) == (40, 60, 7)
    assert sample["file_name"] == str(picture)
    assert (sample["captions"], sample["neg_category_ids"]) == (["a"], [3])


def test_image_labels_pass_and_give_empty_instances(picture: Path) -> None:
    record = record_of(picture, ann_type="image", pos_category_ids=[2, 5], dataset_source=1)
    sample = mapper(mask_format="polygon")(record)
    assert (sample["ann_type"], sample["pos_category_ids"]) == ("image", [2, 5])
    assert sample["dataset_source"] == 1
    assert len(sample["instances"]) == 0
    assert sample["instances"].gt_boxes.tensor.shape == (0, 4)
    assert isinstance(sample["instances"].gt_masks, PolygonMasks)
    masks = mapper(mask_format="bitmask")(record)["instances"].gt_masks
    assert isinstance(masks, BitMasks)
    assert masks.tensor.shape == (0, 40, 60)


def test_boxes_and_masks_move_with_the_image(picture: Path) -> None:
    record = record_of(picture, rectangle(10, 5, 20, 30))
    half = T.Resize((20, 30))
    for kind in ("polygon", "bitmask"):
        sample = mapper(half, T.HFlipTransform(30), mask_format=kind)(record)
        instances = sample["instances"]
        assert sample["image"].shape == (3, 20, 30)
        assert instances.gt_boxes.tensor.tolist() == [[15, 2.5, 25, 17.5]]
        found = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.allclose(found, instances.gt_boxes.tensor, atol=1.0)


def test_boxes_cut_off_by_a_crop_are_clipped_or_dropped(picture: Path) -> None:
    record = record_of(picture, rectangle(10, 5, 20, 30), rectangle(50, 0, 5, 5))
    crop = T.CropTransform(20, 0, 30, 40)
    assert mapper(crop)(record)["instances"].gt_boxes.tensor.tolist() == [[0, 5, 10, 35]]


def test_boxes_are_recomputed_from_masks(picture: Path) -> None:
    corner = np.zeros((40, 60), dtype=np.uint8)
    corner[0, :20] = corner[:20, 19] = 1
    annotation = rectangle(0, 0, 20, 20, segmentation=run_lengths(corner))
    crop = T.CropTransform(0, 0, 10, 40)
    found = [
        mapper(crop, mask_format="bitmask", recompute_boxes=tight)(record_of(picture, annotation))
        for tight in (False, True)
    ]
    boxes = [sample["instances"].gt_boxes.tensor.tolist() for sample in found]
    assert boxes == [[[0, 0, 10, 20]], [[0, 0, 10, 1]]]
    with pytest.raises(ConfigError, match="recomputed from masks only"):
        mapper(recompute_boxes=True)


def test_run_length_masks(picture: Path) -> None:
    bits = np.zeros((40, 60), dtype=np.uint8)
    bits[5:35, 10:30] = 1
    annotation = rectangle(10, 5, 20, 30, segmentation=run_lengths(bits))
    instances = mapper(mask_format="bitmask")(record_of(picture, annotation))["instances"]
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), bits.astype(bool))


def test_each_dataset_has_its_own_augmentation_and_kind(picture: Path) -> None:
    steps = [[T.Resize((20, 30))], [T.Resize((8, 12))]]
    many = DetectionMapper(is_train=True, augmentations=steps, ann_types=["box", "image"])
    found = [many(record_of(picture, ann_type="caption", dataset_source=s)) for s in (0, 1)]
    assert [tuple(sample["image"].shape) for sample in found] == [(3, 20, 30), (3, 8, 12)]
    assert [sample["ann_type"] for sample in found] == ["box", "image"]


def test_test_samples_have_no_labels(picture: Path) -> None:
    record = record_of(picture, rectangle(10, 5, 20, 30))
    sample = mapper(T.Resize((20, 30)), is_train=False)(record)
    assert set(sample) == {"file_name", "height", "width", "image_id", "image"}
    assert (sample["height"], sample["width"]) == (40, 60)


def test_wrong_sizes_are_named(picture: Path) -> None:
    record = record_of(picture)
    record["width"] = 61
    with pytest.raises(ImageError, match="60 x 40 pixels, its record says 61 x 40") as caught:
        mapper()(record)
    assert str(picture) in caught.value.where


def test_missing_sizes_are_filled_in(picture: Path) -> None:
    sample = mapper(is_train=False)({"file_name": str(picture), "image_id": 1})
    assert (sample["height"], sample["width"]) == (40, 60)


def test_images_that_are_not_files(picture: Path) -> None:
    record = {"tar_index": 3, "image_id": 9, "height": 2, "width": 4}
    with pytest.raises(DatasetError, match="image 9 has no file_name"):
        mapper()(record)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sample = mapper(read_record=lambda r: pixels + r["tar_index"])(record)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels + 3)
    assert "instances" not in sample


def test_too_many_pixels_are_refused(picture: Path) -> None:
    with pytest.raises(ImageError, match="2400|limit"):
        mapper(max_pixels=2399)(record_of(picture))


def test_the_mapper_of_a_config(picture: Path) -> None:
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.CUSTOM_AUG = "EfficientDetResizeCrop"
    cfg.INPUT.TRAIN_SIZE = 30
    cfg.INPUT.SCALE_RANGE = (1.0, 1.0)
    cfg.INPUT.RANDOM_FLIP = "none"
    sample = DetectionMapper(cfg, is_train=True)(record_of(picture, rectangle(10, 5, 20, 30)))
    assert sample["image"].shape == (3, 20, 30)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[5, 2.5, 15, 17.5]]
    assert isinstance(sample["instances"].gt_masks, BitMasks)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 80, 200
    assert DetectionMapper(cfg, is_train=False)(record_of(picture))["image"].shape == (3, 80, 120)
    cfg.INPUT.MASK_FORMAT = "rle"
    with pytest.raises(ConfigError, match="unknown mask format 'rle'"):
        DetectionMapper(cfg, is_train=True)


@pytest.mark.parametrize("there", [True, False])
def test_cutting_polygons_needs_a_package(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CROP.ENABLED = True
    spec = object() if there else None
    monkeypatch.setattr("ext_common.data.mapper.importlib.util.find_spec", lambda name: spec)
    if there:
        assert DetectionMapper(cfg, is_train=True).recompute_boxes
    else:
        with pytest.raises(ConfigError, match=r"INPUT\.CROP\.ENABLED: .*shapely"):
            DetectionMapper(cfg, is_train=True)
    assert not DetectionMapper(cfg, is_train=False).recompute_boxes
