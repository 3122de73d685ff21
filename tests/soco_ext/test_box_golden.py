"""Crops, boxes, levels, cutout and whole samples against the numbers of the authors' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from soco_ext.data import boxes as box_rules
from soco_ext.data.box_pairs import PairBoxes
from soco_ext.data.crops import Crop, draw_crop, resized_crop, shared_part, whole_image
from soco_ext.data.cutout import cut_out
from soco_ext.data.levels import levels_of, view_pixels
from soco_ext.data.view_maker import DrawnBoxes, ViewMaker
from soco_ext.data.view_options import ViewOptions
from soco_ext.data.view_spec import CutoutSpec
from soco_ext.modeling.correspondence import (
    same_object,
    same_object_assigned,
    same_object_by_level,
)
from tests.golden_cases import golden_arrays

pytestmark = pytest.mark.golden
Case = dict[str, np.ndarray]
PLANS = {"fpn": "fpn_3view", "star": "star_4view", "c4": "c4_2view"}


class Recorded:
    """Draws that were recorded, one list for each kind."""

    def __init__(self, uniforms: Any, integers: Any) -> None:
        self.uniforms = iter(np.asarray(uniforms).tolist())
        self.integers = iter(np.asarray(integers).tolist())
        self.used = 0

    def uniform(self, low: float, high: float) -> float:
        self.used += 1
        number = float(next(self.uniforms))
        assert low <= number <= high
        return number

    def integer(self, low: int, high: int) -> int:
        number = int(next(self.integers))
        assert low <= number <= high
        return number


def crop(case: Case, key: str) -> Crop:
    return Crop(*case[key].tolist())


def numbered(case: Case, prefix: str) -> int:
    count = 0
    while f"{prefix}_{count}" in case:
        count += 1
    assert count
    return count


def slots(ids: np.ndarray, levels: np.ndarray, count: int) -> np.ndarray:
    """Id of each box at its level; -1 elsewhere."""
    return np.where(levels[None] == np.arange(count)[:, None], ids[None], -1)


def test_golden_crop_sampling() -> None:
    case = golden_arrays("soco", "crop_sampling.npz")
    for c in range(numbered(case, "image_hw")):
        size, scale = tuple(case[f"image_hw_{c}"].tolist()), tuple(case[f"scale_{c}"].tolist())
        for k, wanted in enumerate(case[f"params_{c}"].tolist()):
            draws = Recorded(case[f"uniforms_{c}"][k], case[f"randints_{c}"][k])
            assert draw_crop(size, scale, (3 / 4, 4 / 3), draws) == tuple(wanted)
            assert draws.used == 2 * case[f"attempts_{c}"][k]


def test_golden_box_geometry() -> None:
    case = golden_arrays("soco", "box_geometry.npz")
    aware = case["aware_range"].tolist()
    levels = len(aware) - 1
    for c in range(int(case["num_cases"])):
        crops = [crop(case, f"params_view{side}_{c}") for side in (1, 2)]
        assert shared_part(*crops) == tuple(case[f"overlap_xyxy_{c}"].tolist())
        proposals = box_rules.with_ids(case[f"proposals_xyxy_{c}"])
        kept = box_rules.in_both(proposals, *crops)
        np.testing.assert_array_equal(kept, case[f"kept_props_id_{c}"])
        found = [box_rules.clipped(kept, each) for each in crops]
        np.testing.assert_array_equal(box_rules.common_ids(*found), case[f"common_ids_{c}"])
        assigned = []
        for side, boxes, each in zip((1, 2), found, crops, strict=True):
            np.testing.assert_array_equal(boxes, case[f"clipped{side}_{c}"])
            pixels = view_pixels(boxes, each, int(case[f"view{side}_size_{c}"][0]))
            np.testing.assert_array_equal(pixels, case[f"pix{side}_{c}"][:, :4])
            assigned.append(levels_of(pixels, aware, 0, levels))
            ids = slots(boxes[:, 4], assigned[-1], levels).ravel()
            wanted = case[f"assigned{side}_{c}"]
            np.testing.assert_array_equal(ids, np.where(wanted < 0, -1, wanted))
            shares = box_rules.normalised(boxes, each)
            np.testing.assert_allclose(shares, case[f"norm{side}_{c}"], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(
                box_rules.flipped(shares), case[f"norm{side}_flip_{c}"], rtol=1e-6, atol=1e-6
            )
            assert each.flipped() == crop(case, f"params{side}_flip_{c}")
        ids_a, ids_b = (torch.from_numpy(boxes[None, :, 4]) for boxes in found)
        levels_a, levels_b = (torch.from_numpy(numbers[None]) for numbers in assigned)
        by_level = same_object_by_level(ids_a, levels_a, ids_b, levels_b, levels)
        np.testing.assert_array_equal(by_level[0].numpy(), case[f"corres_aware_{c}"])
        plain = same_object(ids_a, ids_b)
        np.testing.assert_array_equal(plain[0].numpy(), case[f"corres_plain_{c}"])


def test_golden_box_jitter() -> None:
    case = golden_arrays("soco", "box_jitter.npz")
    for c in range(numbered(case, "u")):
        used = case[f"u_{c}"] < case[f"prob_ratio_{c}"][0]
        np.testing.assert_array_equal(used, case[f"jitter_used_{c}"])
        moved = box_rules.jittered(case[f"props_id_{c}"], used, case[f"jitter_{c}"])
        np.testing.assert_allclose(moved, case[f"jittered_{c}"], rtol=1e-9, atol=1e-9)
        whole = whole_image(tuple(case[f"whole_image_hw_{c}"].tolist()))
        np.testing.assert_allclose(
            box_rules.clipped(moved, whole), case[f"jittered_clipped_{c}"], rtol=1e-9, atol=1e-9
        )


def test_golden_level_assign() -> None:
    case = golden_arrays("soco", "level_assign.npz")
    boxes = case["pix_boxes_id"]
    for key in (key for key in case if key.startswith("assigned")):
        start, end = (int(key.split(word)[1].split("_")[0]) for word in ("start", "end"))
        aware = case["aware_range_alt" if "_alt_" in key else "aware_range"].tolist()
        found = levels_of(boxes, aware, start, end)
        np.testing.assert_array_equal(slots(boxes[:, 4], found, end - start), case[key], key)


def test_golden_correspondence_duplicates() -> None:
    case = golden_arrays("soco", "correspondence_duplicates.npz")
    ids = [torch.from_numpy(case[f"assigned{side}"])[None] for side in (1, 2)]
    matrix = same_object_assigned(ids[0], ids[0], ids[1], ids[1])
    np.testing.assert_array_equal(matrix[0].numpy(), case["corres"])


def test_golden_cutout() -> None:
    case = golden_arrays("soco", "cutout.npz")
    kinds, values = case["stream_kind"], case["stream_value"]
    draws = Recorded(values[kinds != "i"], values[kinds == "i"])
    image = case["image"].copy()
    spec = CutoutSpec(float(case["prob"]), tuple(case["ratio"].tolist()))
    cut_out(image, case["boxes_norm"], spec, draws)
    np.testing.assert_array_equal(image, case["out"])


def padded_pairs(case: Case, tag: str, crops: list[Crop], count: int) -> list[PairBoxes]:
    """The pairs with the recorded choice, jitter and padding."""
    pairs = []
    for n, other in enumerate(crops[1:]):
        chosen = case[f"{tag}_selected_pair{n}"].astype(np.float64)
        moved = case.get(f"{tag}_jittered_pair{n}", chosen).astype(np.float64)
        pairs.append(PairBoxes.of(chosen, moved, (crops[0], other)))
    pads = case[f"{tag}_pads_in_order"]
    lists = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    call = 0
    for n, boxes in enumerate(lists):
        if len(boxes) < count:
            again = pads[pads[:, 0] == call][:, 1:].astype(np.float64)
            lists[n] = np.concatenate([boxes, again])
            call += 1
    return [PairBoxes(*both) for both in zip(lists, lists[len(pairs) :], strict=False)]


def test_golden_pipeline() -> None:
    case = golden_arrays("soco", "pipeline.npz")
    tags = [key.removesuffix("_image_u8") for key in case if key.endswith("_image_u8")]
    assert tags
    for tag in tags:
        kind, count = tag.split("_")[0], int(case[f"{tag}_K"])
        options = ViewOptions(plan=PLANS[kind], select_k=count, padding_k=count)
        maker = ViewMaker(options)
        names = [n for n in ("whole", "crop", "crop3") if f"{tag}_params_{n}" in case]
        crops = [crop(case, f"{tag}_params_{name}") for name in names]
        image = Image.fromarray(case[f"{tag}_image_u8"])
        for number, name in enumerate(names):
            view = resized_crop(image, crops[number], maker.plan.views[number].size)
            wanted = case[f"{tag}_view_{name}_u8_preflip"]
            difference = np.abs(np.asarray(view)[::4, ::4].astype(int) - wanted)
            assert difference.max() <= 2
        pairs = padded_pairs(case, tag, crops, count)
        if kind == "star":
            crops, pairs = [*crops, crops[1]], [*pairs, pairs[0]]
        flips = tuple(case[f"{tag}_flipped_in_order"].tolist())
        found = maker.pairs(DrawnBoxes(tuple(crops), tuple(pairs)), flips)
        assert len(found) == len(maker.plan.views) - 1
        for number, pair in enumerate(found, start=2):
            first = f"{tag}_out_boxes1_1{number}" if kind != "c4" else f"{tag}_out_boxes1"
            wanted_boxes = (case[first], case[f"{tag}_out_boxes{number}"])
            for boxes, wanted in zip(pair["boxes"], wanted_boxes, strict=True):
                np.testing.assert_allclose(boxes.numpy(), wanted, atol=1e-6, rtol=0)
            ids = [boxes[None, :, 4] for boxes in pair["boxes"]]
            levels = [numbers[None] for numbers in pair["levels"]]
            if kind == "c4":
                matrix = same_object(*ids)
            else:
                matrix = same_object_by_level(ids[0], levels[0], ids[1], levels[1], options.levels)
            np.testing.assert_array_equal(matrix[0].numpy(), case[f"{tag}_out_corres1{number}"])
