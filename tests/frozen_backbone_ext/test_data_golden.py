"""Copy-Paste and large-scale jitter against the golden numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from frozen_backbone_ext.data.jitter import jitter_transforms
from frozen_backbone_ext.data.paste import PasteRule, Scene, mask_boxes, paste
from tests.golden_cases import golden_arrays

pytestmark = pytest.mark.golden

PASTE = golden_arrays("frozen_backbone", "copy_paste.npz")
JITTER = golden_arrays("frozen_backbone", "lsj.npz")


def _case(arrays: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    prefix = f"case{number}."
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _scene(case: dict[str, np.ndarray], name: str) -> Scene:
    return Scene(
        case[f"{name}.image"].astype(np.uint8),
        case[f"{name}.masks"].astype(bool),
        case[f"{name}.boxes"],
        case[f"{name}.labels"].astype(np.int64),
    )


@pytest.mark.parametrize("number", range(int(PASTE["num_cases"])))
def test_copy_paste_golden(number: int) -> None:
    case = _case(PASTE, number)
    rule = PasteRule(
        box_threshold=float(PASTE["box_threshold"]), area_threshold=float(PASTE["area_threshold"])
    )
    selected = case["selected"].astype(np.int64)
    for box_rule in ("mask", "coord"):
        scenes = _scene(case, "dst"), _scene(case, "src")
        result = paste(*scenes, selected, replace(rule, box_rule=box_rule))
        np.testing.assert_array_equal(result.scene.image_HWC, case["out.image"])
        np.testing.assert_array_equal(result.scene.masks_OHW, case["out.masks"])
        np.testing.assert_array_equal(result.scene.labels_O, case["out.labels"])
        np.testing.assert_array_equal(result.keep_O, case["keep"])
        np.testing.assert_array_equal(result.union_HW, case["union"])
        np.testing.assert_allclose(result.scene.boxes_O4, case[f"rule_{box_rule}.boxes"], atol=1e-4)
        remaining = scenes[0].masks_OHW & ~result.union_HW
        np.testing.assert_array_equal(remaining.sum(axis=(1, 2)), case["area_after"])


@pytest.mark.parametrize("number", range(int(JITTER["num_cases"])))
def test_jitter_golden(number: int) -> None:
    case = _case(JITTER, number)
    image = case["in.image"].astype(np.uint8)
    size = int(case["target_size"])
    transforms = jitter_transforms(
        image.shape[:2],
        size,
        float(case["scale"]),
        tuple(case["offset_uniform_yx"].astype(np.float64).tolist()),
        flip=bool(case["flip"]),
    )
    resize, crop = transforms.transforms[0], transforms.transforms[1]
    assert [resize.new_h, resize.new_w] == case["resized_hw"].astype(int).tolist()
    assert [crop.y0, crop.x0] == case["crop_offset_yx"].astype(int).tolist()
    difference = np.abs(transforms.apply_image(image).astype(float) - case["out.image"])
    assert difference.mean() <= 1
    assert difference.max() <= 3
    boxes = transforms.apply_box(case["in.boxes"].astype(np.float64)).clip(0, size)
    np.testing.assert_allclose(boxes, case["out.boxes_clipped"], atol=1e-3)
    nonempty = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    np.testing.assert_array_equal(nonempty, case["out.box_nonempty"])
    masks = [transforms.apply_segmentation(m) for m in case["in.masks"].astype(np.uint8)]
    np.testing.assert_array_equal(np.stack(masks), case["out.masks"])
    np.testing.assert_array_equal([m.sum() for m in masks], case["out.mask_area"])
    assert mask_boxes(np.stack(masks).astype(bool)).shape == (len(masks), 4)
