"""Large-scale jitter against the golden cases, properties of its geometry, and the config's lists."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common.config import get_config
from ext_common.errors import ConfigError, ImageError
from ext_common.transforms import (
    DETR_SHORT_EDGES,
    EfficientDetResizeCrop,
    EfficientDetResizeCropTransform,
    build_augmentations,
)
from tests.golden_cases import golden_arrays

SIDES = st.integers(1, 300)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.tuples(st.floats(0.05, 3.0), st.floats(0.05, 3.0)).map(lambda ab: tuple(sorted(ab)))


def draw(height: int, width: int, size: int, scale: tuple[float, float], seed: int):
    np.random.seed(seed)  # noqa: NPY002 - detectron2 draws from it
    return EfficientDetResizeCrop(size, scale).get_transform(np.zeros((height, width, 3), np.uint8))


class FixedDraws:
    """Stands in for NumPy's global generator and notes the ranges that were asked for."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.ranges: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float, size: object) -> float:
        self.ranges.append((low, high))
        return self.values.pop(0)


# --- golden -----------------------------------------------------------------------------------


def golden_cases() -> list[dict[str, float]]:
    arrays = golden_arrays("detic", "lsj.npz")
    return [dict(zip(arrays["columns"], row, strict=True)) for row in arrays["params"]]


def golden_transform(case: dict[str, float]) -> EfficientDetResizeCropTransform:
    size = int(case["target_size"])
    return EfficientDetResizeCropTransform(
        scaled_h=int(case["scaled_h"]),
        scaled_w=int(case["scaled_w"]),
        offset_y=int(case["offset_y"]),
        offset_x=int(case["offset_x"]),
        img_scale=case["img_scale"],
        target_size=(size, size),
    )


@pytest.mark.golden
def test_golden_lsj_draws_the_same_window(monkeypatch) -> None:
    for case in golden_cases():
        draws = FixedDraws(case["scale_drawn"], case["u_y"], case["u_x"])
        monkeypatch.setattr(np.random, "uniform", draws)
        augmentation = EfficientDetResizeCrop(
            int(case["target_size"]), (case["scale_lo"], case["scale_hi"])
        )
        transform = augmentation.get_transform(np.zeros((int(case["h"]), int(case["w"]), 3), "u1"))
        assert draws.ranges == [(case["scale_lo"], case["scale_hi"]), (0.0, 1.0), (0.0, 1.0)]
        for name in ("scaled_h", "scaled_w", "offset_y", "offset_x"):
            assert getattr(transform, name) == case[name], name
        assert transform.img_scale == pytest.approx(case["img_scale"], rel=1e-12)


@pytest.mark.golden
def test_golden_lsj_boxes_and_their_inverse() -> None:
    arrays = golden_arrays("detic", "lsj.npz")
    for i, case in enumerate(golden_cases()):
        transform = golden_transform(case)
        there = transform.apply_box(arrays[f"boxes_{i}"])
        np.testing.assert_allclose(there, arrays[f"boxes_out_{i}"], atol=1e-9)
        back = transform.inverse().apply_box(there)
        np.testing.assert_allclose(back, arrays[f"boxes_back_{i}"], atol=1e-9)


@pytest.mark.golden
def test_golden_lsj_pixels() -> None:
    arrays = golden_arrays("detic", "lsj.npz")
    with_pixels = 0
    for i, case in enumerate(golden_cases()):
        transform = golden_transform(case)
        blank = np.zeros((int(case["h"]), int(case["w"])), np.uint8)
        assert transform.apply_image(blank).shape == tuple(arrays[f"out_hw_{i}"])
        if f"img_{i}" not in arrays:
            continue
        with_pixels += 1
        image = arrays[f"img_{i}"]
        got = transform.apply_image(image).astype(int)
        assert np.abs(got - arrays[f"img_out_{i}"]).max() <= 1
        seg = transform.apply_segmentation(arrays[f"seg_{i}"])
        np.testing.assert_array_equal(seg, arrays[f"seg_out_{i}"])
        smooth = transform.apply_image((image / 255).astype(np.float32))
        np.testing.assert_allclose(smooth, arrays[f"float_out_{i}"], rtol=1e-4, atol=1e-5)
    assert with_pixels, "no case carries pixels"


# --- geometry ---------------------------------------------------------------------------------


@given(SIDES, SIDES, st.integers(1, 128), SCALES, SEEDS)
@settings(max_examples=150, deadline=None)
def test_output_fits_the_target_and_has_pixels(height, width, size, scale, seed) -> None:
    transform = draw(height, width, size, scale, seed)
    out = transform.apply_image(np.zeros((height, width, 3), np.uint8))
    assert 1 <= out.shape[0] <= size
    assert 1 <= out.shape[1] <= size
    assert transform.apply_segmentation(np.zeros((height, width), "i4")).shape == out.shape[:2]
    assert transform.apply_image(np.zeros((height, width), np.float32)).shape == out.shape[:2]


@given(SIDES, SIDES, st.integers(1, 2000), SCALES, SEEDS, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_inverse_brings_boxes_back(height, width, size, scale, seed, count) -> None:
    transform = draw(height, width, size, scale, seed)
    corners = np.random.default_rng(seed).uniform(-50, 350, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    kept = boxes.copy()
    there = transform.apply_box(boxes)
    np.testing.assert_array_equal(boxes, kept)
    np.testing.assert_allclose(transform.inverse().apply_box(there), boxes, atol=1e-6)
    polygon = corners.reshape(-1, 2)
    (moved,) = transform.apply_polygons([polygon])
    np.testing.assert_allclose(transform.inverse().apply_coords(moved), polygon, atol=1e-6)


@given(st.integers(40, 200), st.integers(40, 200), SEEDS)
@settings(max_examples=60, deadline=None)
def test_pixels_and_boxes_stay_aligned(height, width, seed) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, [width - 20, height - 20])
    x1, y1 = rng.integers([x0 + 16, y0 + 16], [width + 1, height + 1])
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    transform = draw(height, width, 128, (0.5, 2.0), seed)
    out = transform.apply_image(image)[:, :, 0]
    box = transform.apply_box(np.array([[x0, y0, x1, y1]], np.float64))[0]
    expected = np.clip(box, 0, [out.shape[1], out.shape[0]] * 2)
    if (expected[2:] - expected[:2]).min() < 3:
        return  # cut off
    for filled in (out > 127, transform.apply_segmentation(image[:, :, 0]) > 0):
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # one pixel of rounding in the scaled size, one of sampling
        assert np.abs(seen - expected).max() <= 2.0, (seen, expected)


def test_annotations_of_detectron2_are_transformed_together() -> None:
    from detectron2.data.detection_utils import transform_instance_annotations

    transform = EfficientDetResizeCropTransform(100, 200, 10, 20, 2.0, (64, 64))
    annotation = {
        "bbox": [10.0, 5.0, 20.0, 20.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0]],
    }
    moved = transform_instance_annotations(dict(annotation), T.TransformList([transform]), (64, 64))
    np.testing.assert_allclose(moved["bbox"], [0, 0, 40, 40])
    np.testing.assert_allclose(moved["segmentation"][0], [0, 0, 40, 0, 40, 40])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16, bool])
def test_segmentation_of_any_dtype_takes_the_pixels_that_pil_takes(dtype) -> None:
    from PIL import Image

    labels = np.random.default_rng(3).integers(0, 2, (37, 53)).astype(dtype)
    transform = EfficientDetResizeCropTransform(90, 41, 7, 3, 1.0, (64, 32))
    resized = Image.fromarray(labels.astype(np.uint8)).resize((41, 90), Image.Resampling.NEAREST)
    got = transform.apply_segmentation(labels)
    assert got.dtype == labels.dtype
    np.testing.assert_array_equal(got, np.asarray(resized)[7:71, 3:35].astype(dtype))


def test_a_fourth_channel_is_not_transparency() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    transform = EfficientDetResizeCropTransform(31, 47, 0, 0, 1.5, (64, 64))
    expected = np.stack([transform.apply_image(image[:, :, c]) for c in range(4)], axis=2)
    np.testing.assert_array_equal(transform.apply_image(image), expected)
    np.testing.assert_array_equal(transform.apply_image(image[:, :, :3]), expected[:, :, :3])


def test_pixels_of_another_type_are_refused() -> None:
    transform = EfficientDetResizeCropTransform(4, 4, 0, 0, 1.0, (4, 4))
    with pytest.raises(ImageError, match="int64"):
        transform.apply_image(np.zeros((4, 4), np.int64))


def test_integer_coordinates_keep_their_fraction() -> None:
    transform = EfficientDetResizeCropTransform(3, 3, 0, 1, 0.5, (4, 4))
    np.testing.assert_allclose(transform.apply_coords(np.array([[3, 5]])), [[0.5, 2.5]])
    assert transform.apply_coords(np.zeros((1, 2), np.float32)).dtype == np.float32


# --- lists ------------------------------------------------------------------------------------


def config(**options):
    cfg = get_config()
    for key, value in options.items():
        setattr(cfg.INPUT, key, value)
    return cfg


def run(augmentations, height=90, width=120):
    aug_input = T.AugInput(np.zeros((height, width, 3), np.uint8))
    T.AugmentationList(augmentations)(aug_input)
    return aug_input.image.shape[:2]


@pytest.mark.parametrize("name", ["", "EfficientDetResizeCrop", "ResizeShortestEdge", "DETR"])
def test_training_lists_end_with_the_flip(name) -> None:
    flip = build_augmentations(config(CUSTOM_AUG=name), True)[-1]
    assert isinstance(flip, T.RandomFlip)
    assert (flip.prob, flip.horizontal, flip.vertical) == (0.5, True, False)
    without = build_augmentations(config(CUSTOM_AUG=name, RANDOM_FLIP="none"), True)
    assert not any(isinstance(aug, T.RandomFlip) for aug in without)


def test_default_is_detectron2s_list() -> None:
    from detectron2.data.detection_utils import build_augmentation

    cfg = config()
    assert repr(build_augmentations(cfg, True)) == repr(build_augmentation(cfg, True))
    assert repr(build_augmentations(cfg, False)) == repr(build_augmentation(cfg, False))
    cfg.INPUT.CROP.ENABLED = True
    assert isinstance(build_augmentations(cfg, True)[0], T.RandomCrop)


def test_jitter_takes_size_and_scale_of_config_or_caller() -> None:
    cfg = config(CUSTOM_AUG="EfficientDetResizeCrop", TRAIN_SIZE=320, SCALE_RANGE=(0.5, 1.5))
    jitter = build_augmentations(cfg, True)[0]
    assert (jitter.size, jitter.scale) == (320, (0.5, 1.5))
    own = build_augmentations(cfg, True, size=96, scale=(1, 2))[0]
    assert (own.size, own.scale) == (96, (1.0, 2.0))


def test_shortest_edge_takes_sizes_of_config_or_caller() -> None:
    cfg = config(CUSTOM_AUG="ResizeShortestEdge", MIN_SIZE_TRAIN=(60, 60), MAX_SIZE_TRAIN=1000)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert run(build_augmentations(cfg, True)) == (60, 80)
    assert run(build_augmentations(cfg, True, min_size=(30, 30))) == (30, 40)
    assert run(build_augmentations(cfg, True, max_size=40)) == (30, 40)
    with pytest.raises(ConfigError, match="3 short edges"):
        build_augmentations(cfg, True, min_size=(30, 40, 50))


def test_detr_resizes_whole_images_and_cut_ones() -> None:
    cfg = config(CUSTOM_AUG="DETR")
    cut, resize, _ = build_augmentations(cfg, True)
    assert resize.short_edge_length == DETR_SHORT_EDGES
    assert (DETR_SHORT_EDGES[0], DETR_SHORT_EDGES[-1], resize.max_size) == (480, 800, 1333)
    cfg.INPUT.MIN_SIZE_TRAIN = (240, 400)
    assert build_augmentations(cfg, True)[1].short_edge_length == (240, 400)
    shapes = set()
    for seed in range(12):
        np.random.seed(seed)  # noqa: NPY002 - detectron2 draws from it
        aug_input = T.AugInput(np.zeros((90, 120, 3), np.uint8))
        cut(aug_input)
        shapes.add(aug_input.image.shape[:2])
    assert (90, 120) in shapes
    assert all(side <= 600 for shape in shapes for side in shape)
    assert len(shapes) > 3


def test_test_input_is_the_shortest_edge_or_a_square() -> None:
    cfg = config(CUSTOM_AUG="EfficientDetResizeCrop", MIN_SIZE_TEST=45, MAX_SIZE_TEST=1000)
    assert run(build_augmentations(cfg, False)) == (45, 60)
    cfg.INPUT.TEST_INPUT_TYPE, cfg.INPUT.TEST_SIZE = "square", 64
    assert {run(build_augmentations(cfg, False)) for _ in range(5)} == {(48, 64)}
    assert run(build_augmentations(cfg, False, size=32)) == (24, 32)


@pytest.mark.parametrize(
    ("key", "is_train"), [("CUSTOM_AUG", True), ("TEST_INPUT_TYPE", False), ("RANDOM_FLIP", True)]
)
def test_an_unknown_name_lists_the_choices(key, is_train) -> None:
    with pytest.raises(ConfigError, match=f"INPUT.{key}: unknown value 'Jitter'.*one of '"):
        build_augmentations(config(**{key: "Jitter"}), is_train)


@pytest.mark.parametrize(("size", "scale"), [(0, (1, 1)), (8, (0, 1)), (8, (2, 1)), (8, (1,))])
def test_an_impossible_jitter_is_refused(size, scale) -> None:
    with pytest.raises(ConfigError, match="EfficientDetResizeCrop"):
        EfficientDetResizeCrop(size, scale)
