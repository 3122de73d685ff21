"""The demo's toy world: classes, objects, canvas, backgrounds and outlines of masks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_masks

from tools.demo_data.annotations import mask_to_polygons, without_islands
from tools.demo_data.backgrounds import load_photographs, random_background
from tools.demo_data.canvas import MIN_VISIBLE_PIXELS, Canvas
from tools.demo_data.classes import BASE_CLASSES, CLASSES, NOVEL_CLASSES, DemoClass
from tools.demo_data.fills import FILLS
from tools.demo_data.pictures import (
    picture_rng,
    random_label_picture,
    random_scene,
)
from tools.demo_data.shapes import OUTLINES
from tools.demo_data.sprites import Sprite, random_sprite

GREY = tuple(np.full((300, 400, 3), level, np.uint8) for level in (90, 110))


def _iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    return float((a_HW & b_HW).sum() / (a_HW | b_HW).sum())


def _rasterised(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask after a trip through polygons and pycocotools."""
    codes = coco_masks.frPyObjects(mask_to_polygons(mask_HW), *mask_HW.shape)
    return coco_masks.decode(coco_masks.merge(codes)).astype(bool)


def test_every_word_of_a_novel_name_is_in_a_base_name() -> None:
    known = {word for kind in BASE_CLASSES for word in kind.name.split()}
    assert all(set(kind.name.split()) <= known for kind in NOVEL_CLASSES)


def test_there_are_enough_different_classes() -> None:
    assert len({kind.name for kind in CLASSES}) == len(CLASSES) >= 12
    assert len(BASE_CLASSES) >= 8
    assert len(NOVEL_CLASSES) >= 4
    assert [kind.id for kind in CLASSES] == list(range(1, len(CLASSES) + 1))
    assert {kind.attribute for kind in CLASSES} == set(FILLS)
    assert {kind.shape for kind in CLASSES} == set(OUTLINES)


def test_base_classes_are_long_tailed() -> None:
    weights = [kind.weight for kind in BASE_CLASSES]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 4 * weights[-1]


@pytest.mark.parametrize("kind", [c for c in CLASSES if c.attribute == "red"], ids=lambda c: c.name)
def test_masks_lie_where_the_colour_is(kind: DemoClass) -> None:
    sprite = random_sprite(kind, 40.0, np.random.default_rng(3))
    canvas = Canvas(np.full((90, 90, 3), (0.2, 0.6, 0.3), np.float32))
    assert canvas.paste(sprite, 20, 18, min_visible=0.4)
    (visible,) = canvas.visible()
    red_HW = canvas.image_HW3[..., 0] > 1.5 * canvas.image_HW3[..., 1]
    assert _iou(visible.mask_HW, red_HW) > 0.95
    assert _iou(_rasterised(visible.mask_HW), red_HW) > 0.92


def test_masks_hold_only_what_is_not_hidden() -> None:
    disc, square = (
        Sprite(class_id, np.full((n, n, 3), level, np.float32), np.ones((n, n), np.float32))
        for class_id, n, level in ((1, 30, 1.0), (2, 20, 0.5))
    )
    canvas = Canvas(np.zeros((50, 50, 3), np.float32))
    assert canvas.paste(disc, 5, 5, min_visible=0.4)
    assert canvas.paste(square, 25, 25, min_visible=0.4)
    below, above = canvas.visible()
    assert below.mask_HW.sum() == 30 * 30 - 10 * 10
    assert above.mask_HW.sum() == 20 * 20
    assert not (below.mask_HW & above.mask_HW).any()


def test_a_sprite_that_would_hide_another_is_not_laid_down() -> None:
    sprite = Sprite(1, np.ones((20, 20, 3), np.float32), np.ones((20, 20), np.float32))
    canvas = Canvas(np.zeros((60, 60, 3), np.float32))
    assert canvas.paste(sprite, 10, 10, min_visible=0.4)
    before_HW3 = canvas.image_HW3.copy()
    assert not canvas.paste(sprite, 12, 12, min_visible=0.4)  # shows 19 % of the first
    assert not canvas.paste(sprite, 55, 0, min_visible=0.4)  # shows a quarter of itself
    assert not canvas.paste(sprite, 100, 0, min_visible=0.0)  # outside
    assert np.array_equal(canvas.image_HW3, before_HW3)
    assert len(canvas.visible()) == 1


def test_a_ring_keeps_its_hole_as_one_polygon() -> None:
    y_H, x_W = np.mgrid[:64, :64] - 31.5
    radius_HW = np.hypot(x_W, y_H)
    ring_HW = (radius_HW < 28) & (radius_HW > 14)
    assert len(mask_to_polygons(ring_HW)) == 1
    back_HW = _rasterised(ring_HW)
    assert _iou(back_HW, ring_HW) > 0.95
    assert not back_HW[28:36, 28:36].any()


def test_a_split_mask_becomes_two_polygons_and_loses_its_islands() -> None:
    mask_HW = np.zeros((40, 40), bool)
    mask_HW[5:30, 3:12] = mask_HW[5:30, 20:35] = True
    mask_HW[35, 35:38] = True
    kept_HW = without_islands(mask_HW)
    assert kept_HW.sum() == 25 * 9 + 25 * 15
    assert len(mask_to_polygons(kept_HW)) == 2
    assert np.array_equal(_rasterised(kept_HW), kept_HW)
    assert mask_to_polygons(np.zeros((8, 8), bool)) == []


def test_outlines_follow_the_masks_of_real_scenes() -> None:
    weights = [1.0] * len(CLASSES)
    overlaps = []
    for index in range(12):
        scene = random_scene(GREY, CLASSES, weights, 160, picture_rng(5, index))
        masks = [without_islands(visible.mask_HW) for visible in scene.objects]
        overlaps += [_iou(_rasterised(mask_HW), mask_HW) for mask_HW in masks]
    assert len(overlaps) > 24
    assert min(overlaps) > 0.88
    assert np.mean(overlaps) > 0.97


def test_objects_of_a_scene_differ_in_size_and_stay_visible() -> None:
    sizes = []
    for index in range(30):
        scene = random_scene(GREY, CLASSES, [1.0] * len(CLASSES), 160, picture_rng(0, index))
        assert 1 <= len(scene.objects) <= 6
        for visible in scene.objects:
            assert visible.mask_HW.sum() >= MIN_VISIBLE_PIXELS
            rows, cols = np.nonzero(visible.mask_HW)
            sizes.append(max(np.ptp(rows), np.ptp(cols)) + 1)
    assert max(sizes) > 3 * min(sizes)
    assert np.median(sizes) == pytest.approx(45, abs=15)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.name)
def test_label_pictures_are_about_one_large_object(kind: DemoClass) -> None:
    distractors = 0
    for index in range(8):
        picture = random_label_picture(GREY, kind, CLASSES, 160, picture_rng(0, 3, index))
        *others, main = picture.objects
        assert main.class_id == kind.id
        short = min(picture.image_HW3.shape[:2])
        rows, cols = np.nonzero(main.mask_HW)
        assert max(np.ptp(rows), np.ptp(cols)) + 1 > 0.35 * short
        assert all(other.mask_HW.sum() < main.mask_HW.sum() for other in others)
        distractors += len(others)
    assert distractors < 8


def test_validation_backgrounds_come_from_another_part() -> None:
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[:, 240:] = 255
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert random_background((photo,), (128, 128), rng, validation=False).max() == 0.0
        assert random_background((photo,), (128, 128), rng, validation=True).min() == 1.0


def test_backgrounds_are_crops_of_the_wanted_size() -> None:
    photographs = load_photographs()
    assert len(photographs) >= 4
    for size_hw in ((96, 96), (256, 256), (160, 128), (130, 256)):
        background = random_background(
            photographs, size_hw, np.random.default_rng(0), validation=True
        )
        assert background.shape == (*size_hw, 3)
        assert background.dtype == np.float32
        assert 0.0 <= background.min() < background.max() <= 1.0
