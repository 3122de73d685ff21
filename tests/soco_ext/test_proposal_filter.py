from __future__ import annotations

import numpy as np
import pytest

from ext_common.errors import ConfigError
from soco_ext.proposals.filtering import BoxFilter, boxes_to_rects, rects_to_boxes
from soco_ext.proposals.random_boxes import RandomBoxes
from tests.golden_cases import golden_arrays


@pytest.mark.golden
def test_golden_proposal_filter() -> None:
    case = golden_arrays("soco", "proposal_filter.npz")
    checked = 0
    for number, size in enumerate(case["image_sizes_hw"].tolist()):
        rects = case[f"rects_{number}"]
        for key in case:
            if key.startswith("keep_") and key.endswith(f"_{number}"):
                strategy = key.removeprefix("keep_").removesuffix(f"_{number}")
                kept = BoxFilter.parse(strategy).keep(rects, tuple(size))
                np.testing.assert_array_equal(kept, case[key], err_msg=key)
                checked += 1
            if key.startswith("boxes_xyxy_") and key.endswith(f"_{number}"):
                strategy = key.removeprefix("boxes_xyxy_").removesuffix(f"_{number}")
                kept = BoxFilter.parse(strategy).keep(rects, tuple(size))
                np.testing.assert_array_equal(rects_to_boxes(rects[kept]), case[key])
                checked += 1
    assert checked >= 2 * len(case["image_sizes_hw"])


def test_post_relaxes_step_by_step() -> None:
    strict, post = BoxFilter.parse("ratio3size0308"), BoxFilter.parse("ratio3size0308post")
    size = (400, 400)
    rects = {
        "fits": [0, 0, 200, 200],
        "too large": [0, 0, 400, 400],
        "too thin": [0, 0, 400, 40],
        "too small": [0, 0, 31, 400],
    }

    def keep(which: BoxFilter, *names: str) -> list[bool]:
        return which.keep(np.array([rects[name] for name in names]).reshape(-1, 4), size).tolist()

    assert keep(post, *rects) == keep(strict, *rects) == [True, False, False, False]
    assert keep(strict, "too large", "too thin", "too small") == [False] * 3
    assert keep(post, "too large", "too thin", "too small") == [True, False, False]
    assert keep(post, "too thin", "too small") == [True, False]
    assert keep(post, "too small") == [False]
    assert keep(post) == []


@pytest.mark.parametrize(
    "text", ["", "post", "ratio", "ratio33", "size3", "ratio3size", "nonesize03"]
)
def test_unknown_strategies(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown filter strategy"):
        BoxFilter.parse(text)
    with pytest.raises(ConfigError, match="no box is in"):
        BoxFilter.parse("size0803")


def test_rectangles_and_boxes() -> None:
    rects = np.array([[3, 4, 32, 40], [0.5, 0, 1.5, 2]])
    boxes = rects_to_boxes(rects)
    assert boxes.tolist() == [[3, 4, 34, 43], [0.5, 0, 1.0, 1.0]]
    np.testing.assert_array_equal(boxes_to_rects(boxes), rects)
    assert rects_to_boxes(np.zeros((0, 4))).shape == (0, 4)


def test_random_boxes_keep_to_their_ranges() -> None:
    size = (300, 400)
    boxes = RandomBoxes(tries=4000).draw(size, np.random.default_rng(0)).astype(np.float64)
    rects = boxes_to_rects(boxes)
    assert 3000 < len(boxes) < 4000
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 399).all()
    assert (boxes[:, 3] <= 299).all()
    share = np.sqrt(rects[:, 2] * rects[:, 3]) / np.sqrt(300 * 400)
    assert 0.29 < share.min() < 0.32
    assert 0.6 < share.max() < 0.81
    aspect = rects[:, 2] / rects[:, 3]
    assert aspect.min() > 0.3
    assert aspect.max() < 3.1
    # around their centres, not in the lower right of the image
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres.mean(axis=0), [200, 150], atol=4)
    again = RandomBoxes(tries=4000).draw(size, np.random.default_rng(0))
    np.testing.assert_array_equal(boxes, again)
    assert RandomBoxes().draw((20, 500), np.random.default_rng(0)).shape == (0, 4)
