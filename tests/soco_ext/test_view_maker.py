from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common.errors import ConfigError
from soco_ext.data.box_pairs import choose_boxes
from soco_ext.data.boxes import with_ids
from soco_ext.data.colour import to_array, to_pixels
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_options import ViewOptions
from soco_ext.data.view_spec import C4_2VIEW, FPN_3VIEW, STAR_4VIEW
from tests.soco_ext.scenes import scene

SMALL: dict[str, Any] = {"image_size": 32, "image3_size": 16, "image4_size": 16}


def draws(seed: int = 0) -> GeneratorDraws:
    return GeneratorDraws(np.random.default_rng(seed))


def boxes_of(size_hw: tuple[int, int], count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    low = generator.integers(0, [size_hw[1], size_hw[0]], (count, 2))
    size = generator.integers(1, [size_hw[1] + 1, size_hw[0] + 1], (count, 2))
    high = np.minimum(low + size, [size_hw[1] - 1, size_hw[0] - 1])
    return np.concatenate([low, high], axis=1)


def test_published_plans_are_the_options_defaults() -> None:
    assert ViewOptions().view_plan() == FPN_3VIEW
    assert ViewOptions(plan="star_4view").view_plan() == STAR_4VIEW
    assert ViewOptions(plan="c4_2view", crop=0.6, cutout=True).view_plan() == C4_2VIEW


@pytest.mark.parametrize(
    ("options", "sizes", "pairs"),
    [
        (ViewOptions(**SMALL), [32, 32, 16], 2),
        (ViewOptions(third_view="reduced_second", **SMALL), [32, 32, 16], 2),
        (ViewOptions(plan="star_4view", **SMALL), [32, 32, 16, 16], 3),
        (ViewOptions(plan="c4_2view", cutout=True, **SMALL), [32, 32], 1),
        (ViewOptions(views=("crop:20", "whole:24", "crop:16", "crop3:8", "crop:12")), None, 4),
    ],
    ids=["fpn", "paper", "star", "c4", "own"],
)
def test_samples_have_the_views_and_pairs_of_their_plan(
    options: ViewOptions, sizes: list[int] | None, pairs: int
) -> None:
    maker = ViewMaker(options)
    sample = maker(scene(), boxes_of((60, 80), 9), draws())
    sides = sizes or [20, 24, 16, 8, 12]
    assert [tuple(view.shape) for view in sample["views"]] == [(3, n, n) for n in sides]
    assert all(view.dtype == torch.float32 for view in sample["views"])
    assert [pair["views"] for pair in sample["pairs"]] == [(0, n + 1) for n in range(pairs)]
    for pair in sample["pairs"]:
        for boxes, levels in zip(pair["boxes"], pair["levels"], strict=True):
            assert boxes.shape == (4, 5)
            assert boxes.dtype == torch.float32
            assert levels.dtype == torch.int64
            assert ((levels >= -1) & (levels < 4)).all()
            assert ((boxes[:, :4] >= 0) & (boxes[:, :4] <= 1)).all()


def test_same_seed_same_sample_and_other_seed_another() -> None:
    maker = ViewMaker(ViewOptions(cutout=True, **SMALL))
    boxes = boxes_of((60, 80), 20)
    first, again, other = (maker(scene(), boxes, draws(seed)) for seed in (1, 1, 2))
    for one, two in zip(first["views"], again["views"], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(first["pairs"], again["pairs"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["boxes"], two["boxes"], strict=True))
    assert not torch.equal(first["views"][1], other["views"][1])


def test_reduced_second_view_shows_the_second_views_crop_and_boxes() -> None:
    plain: dict[str, Any] = {"colour": "none", "flip": 0.0}
    sizes = {"image_size": 32, "image3_size": 32}
    sample = ViewMaker(ViewOptions(third_view="reduced_second", **sizes, **plain))(
        scene(), boxes_of((60, 80), 9), draws()
    )
    assert torch.equal(sample["views"][1], sample["views"][2])
    for side in (0, 1):
        first, second = (pair["boxes"][side] for pair in sample["pairs"])
        assert torch.equal(first, second)
    released = ViewMaker(ViewOptions(**sizes, **plain))(scene(), boxes_of((60, 80), 9), draws())
    assert not torch.equal(released["views"][1], released["views"][2])


def test_a_box_shows_the_same_pixels_in_both_views() -> None:
    """Boxes are followed through crop, resize and flip: a marked object stays in its box."""
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[20:44, 30:66] = 255
    options = ViewOptions(colour="none", jitter_prob=0.0, image_size=96, image3_size=48)
    for seed in range(20):
        sample = ViewMaker(options)(image, np.array([[30, 20, 65, 43]]), draws(seed))
        for pair in sample["pairs"]:
            for number, boxes in zip(pair["views"], pair["boxes"], strict=True):
                view = to_pixels(sample["views"][number].numpy())[:, :, 0] > 127
                rows, columns = np.nonzero(view)
                found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                side = view.shape[0]
                np.testing.assert_allclose(boxes[0, :4].numpy() * side, found, atol=3.5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 8),
    st.integers(1, 5),
    st.integers(0, 2**16),
)
def test_any_image_and_any_boxes_give_full_lists_of_common_ids(
    height: int, width: int, count: int, wanted: int, seed: int
) -> None:
    options = ViewOptions(image_size=8, image3_size=4, select_k=wanted, padding_k=5)
    boxes = boxes_of((height, width), count, seed)
    sample = ViewMaker(options)(scene(seed % 7, (height, width)), boxes, draws(seed))
    for pair in sample["pairs"]:
        first, second = (each[:, 4] for each in pair["boxes"])
        assert len(first) == len(second) == 5
        assert len(set(first.tolist()) | set(second.tolist())) <= max(wanted, 1) + 1
        assert torch.isin(first, second).any()
        assert torch.isfinite(torch.cat(pair["boxes"])).all()


def test_an_image_without_proposals_is_one_object() -> None:
    options = ViewOptions(colour="none", flip=0.0, jitter_prob=0.0, **SMALL)
    sample = ViewMaker(options)(scene(), np.zeros((0, 4)), draws())
    first = sample["pairs"][0]["boxes"][0]
    wanted = [0, 0, 79 / 80, 59 / 60, 1]
    np.testing.assert_allclose(first.numpy(), [wanted] * 4, rtol=1e-6)


def test_choosing_boxes() -> None:
    boxes = with_ids(np.array([[0, 0, 9, 9], [0, 0, 19, 19], [0, 0, 4, 4], [5, 5, 20, 24]]))

    def ids(strategy: str, count: int, most: int = 4) -> list[int]:
        return choose_boxes(boxes, strategy, count, most, draws())[:, 4].astype(int).tolist()

    assert ids("top", 2) == [1, 2]
    assert ids("area", 3) == [2, 4, 1]
    assert ids("none", 1, 3) == [1, 2, 3]
    assert len(set(ids("random", 3))) == 3
    assert ids("random", 9) == [1, 2, 3, 4]
    many = {tuple(choose_boxes(boxes, "random", 2, 4, draws(n))[:, 4]) for n in range(40)}
    assert len(many) > 8


def test_colours() -> None:
    pixels = scene(5, (20, 20))
    from PIL import Image

    array = to_array(Image.fromarray(pixels))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(
        array, ((pixels / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(to_pixels(array), pixels)
    plain = ViewMaker(ViewOptions(colour="none", flip=0.0, **SMALL))
    byol = ViewMaker(ViewOptions(flip=0.0, **SMALL))
    boxes = boxes_of((60, 80), 6)
    without, with_colour = (maker(scene(), boxes, draws()) for maker in (plain, byol))
    assert not torch.equal(without["views"][0], with_colour["views"][0])
    assert torch.equal(without["pairs"][0]["boxes"][1], with_colour["pairs"][0]["boxes"][1])


def test_cutout_zeroes_squares_of_all_views_but_the_first() -> None:
    options = ViewOptions(colour="none", cutout=True, cutout_prob=1.0, **SMALL)
    image = np.full((60, 80, 3), 200, dtype=np.uint8)
    sample = ViewMaker(options)(image, boxes_of((60, 80), 9), draws())
    zeros = [int((view == 0).all(dim=0).sum()) for view in sample["views"]]
    assert zeros[0] == 0
    assert all(count > 0 for count in zeros[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": "fpn"}, "PLAN.*unknown value 'fpn'"),
        ({"select_k": 5}, "SELECT_K.*5 boxes in 4 places"),
        ({"crop": 0.0}, "CROP.*0.0 to 1.0"),
        ({"aware_end": 6}, "AWARE_END"),
        ({"views": ("whole:224",)}, "fewer than two views"),
        ({"views": ("whole:224", "crop3:20")}, "view 2 is a copy of view 3"),
        ({"views": ("whole:224", "crops:20")}, "view 'crops:20'"),
        ({"max_tries": 0}, "MAX_TRIES"),
        ({"cutout_ratio_min": 0.5}, "CUTOUT_RATIO_MIN"),
        ({"third_view": "reduced_second", "plan": "star_4view"}, "THIRD_VIEW.*star_4view"),
        ({"third_view": "reduced_second", "plan": "c4_2view"}, "THIRD_VIEW.*c4_2view"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewOptions(**changes).view_plan()
