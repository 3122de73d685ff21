from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import local_binary_pattern

from benchmarks.plain_selective_search import plain_search
from ext_common.errors import ConfigError
from soco_ext.proposals import merging
from soco_ext.proposals import opencv_search as opencv
from soco_ext.proposals.segmentation import SearchSettings, segment
from soco_ext.proposals.selective_search import search_segments, selective_search
from soco_ext.proposals.texture import binary_patterns
from tests.golden_cases import golden_arrays
from tests.soco_ext.scenes import scene


@pytest.mark.golden
def test_golden_selective_search() -> None:
    case = golden_arrays("soco", "selective_search_python.npz")
    found = search_segments(case["image"], case["label"])
    np.testing.assert_array_equal(found.rects_T4, case["rects_xywh"])
    np.testing.assert_array_equal(found.sizes_T, case["sizes"])
    assert len(np.unique(case["label"])) == int(case["n_initial"])


@pytest.mark.parametrize("seed", range(6))
def test_equal_boxes_to_one_region_at_a_time(seed: int) -> None:
    image = scene(seed, (70 + seed, 90))
    label = segment(image, SearchSettings(scale=50, sigma=0.5, min_size=5))
    rects, sizes = plain_search(image, label)
    found = search_segments(image, label)
    assert found.rects_T4.tolist() == [list(rect) for rect in rects]
    assert found.sizes_T.tolist() == sizes


def test_equal_boxes_where_all_regions_are_alike() -> None:
    # equal similarities everywhere: the order of pairs alone decides
    image = np.full((24, 24, 3), 90, dtype=np.uint8)
    label = np.zeros((24, 24), dtype=int)
    for number in range(9):
        top, left = 3 + 7 * (number // 3), 3 + 7 * (number % 3)
        label[top : top + 3, left : left + 3] = number + 1
    rects, sizes = plain_search(image, label)
    found = search_segments(image, label)
    assert found.rects_T4.tolist() == [list(rect) for rect in rects]
    assert found.sizes_T.tolist() == sizes
    assert len(rects) > len(np.unique(label))


@pytest.mark.parametrize("pairs", [1, 2, 3, 7, 8, 9, 40])
def test_bins_are_added_one_after_the_other(pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    histograms_BT = generator.random((75, 60)) / 75
    first, second = generator.integers(0, 60, (2, pairs))
    expected = []
    for a, b in zip(first, second, strict=True):
        total = 0.0
        for one, other in zip(
            histograms_BT[:, a].tolist(), histograms_BT[:, b].tolist(), strict=True
        ):
            total += min(one, other)
        expected.append(total)
    assert merging._common(histograms_BT, first, second).tolist() == expected


@pytest.mark.parametrize("seed", range(8))
def test_equal_boxes_where_many_similarities_are_equal(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tiles = generator.integers(0, 2, (8, 8)).repeat(4, axis=0).repeat(4, axis=1)
    image = (tiles[..., None] * np.array([200, 200, 200])).astype(np.uint8)
    label = generator.integers(0, 9, (8, 8)).repeat(4, axis=0).repeat(4, axis=1)
    rects, sizes = plain_search(image, label)
    found = search_segments(image, label)
    assert found.rects_T4.tolist() == [list(rect) for rect in rects]
    assert found.sizes_T.tolist() == sizes


def test_numbers_of_segments_do_not_matter() -> None:
    image = scene(3)
    label = segment(image, SearchSettings(50, 0.5, 5))
    renamed = (label * -7919 + 10**9).astype(np.int64)
    np.testing.assert_array_equal(
        search_segments(image, label).boxes_T4, search_segments(image, renamed).boxes_T4
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 5, 256])
)
def test_textures_equal_scikit_image(seed: int, height: int, width: int, values: int) -> None:
    draw = np.random.default_rng(seed)
    channel = (draw.integers(0, values, (height, width)) * (255 // (values - 1))).astype(np.uint8)
    np.testing.assert_array_equal(
        binary_patterns(channel), local_binary_pattern(channel, 8, 1.0).astype(np.uint8)
    )


@pytest.mark.parametrize("values", [2, 5, 256])
def test_textures_of_many_rows_equal_scikit_image(values: int) -> None:
    # rounding depends on the number of the row, and rows are worked on in bands
    draw = np.random.default_rng(values)
    channel = (draw.integers(0, values, (300, 9)) * (255 // (values - 1))).astype(np.uint8)
    channel[100:200, 2:] = 77
    np.testing.assert_array_equal(
        binary_patterns(channel), local_binary_pattern(channel, 8, 1.0).astype(np.uint8)
    )


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 2)], ids=str)
def test_tiny_images_have_regions(size_hw: tuple[int, int]) -> None:
    image = np.zeros((*size_hw, 3), dtype=np.uint8)
    found = selective_search(image)
    assert found.rects_T4.tolist() == [[0, 0, size_hw[1] - 1, size_hw[0] - 1]]
    for mode in opencv.MODES:
        rects = opencv.opencv_search(image, mode)
        assert (rects[:, 2:] >= 1).all()
        assert (rects[:, 2] + rects[:, 0] <= size_hw[1]).all()


def test_opencv_modes_find_boxes_inside_the_image() -> None:
    image = scene(1, (80, 100))
    single, fast = (opencv.opencv_search(image, mode) for mode in ("single", "fast"))
    assert 0 < len(single) <= len(fast)
    for rects in (single, fast):
        assert (rects >= 0).all()
        assert ((rects[:, :2] + rects[:, 2:]) <= [100, 80]).all()


@pytest.mark.parametrize("mode", ["single", "fast"])
def test_opencv_finds_the_same_whatever_was_searched_before(mode: str) -> None:
    image = scene(1, (80, 100))
    first = opencv.opencv_search(image, mode)
    opencv.opencv_search(scene(2, (60, 70)), mode)
    np.testing.assert_array_equal(opencv.opencv_search(image, mode), first)
    areas = first[:, 2:].prod(axis=1)
    assert (np.diff(areas) <= 0).all()


def test_opencv_without_selective_search(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(ConfigError, match="no selective search.*uninstall every opencv"):
        opencv.opencv_search(scene(), "fast")
    with pytest.raises(ConfigError, match="unknown mode 'slow'"):
        opencv.opencv_search(scene(), "slow")
