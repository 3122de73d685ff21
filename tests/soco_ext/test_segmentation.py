"""The segmentation of the authors' selective search; the oracle is scikit-image's, which they call."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from benchmarks.cases.selective_search import picture
from benchmarks.plain_selective_search import plain_segment
from ext_common.errors import ConfigError
from soco_ext.proposals import edge_joining
from soco_ext.proposals.segmentation import SearchSettings, compiled_joining, segment
from tests.golden_cases import golden_arrays


@pytest.mark.golden
def test_golden_labels() -> None:
    case = golden_arrays("soco", "selective_search_python.npz")
    scale, sigma, min_size = case["settings"].tolist()
    found = segment(case["image"], SearchSettings(scale, sigma, int(min_size)))
    np.testing.assert_array_equal(found, case["label"])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    values=st.sampled_from([1, 2, 5, 256]),  # few values: many edges of equal cost
    scale=st.sampled_from([1.0, 20.0, 100.0, 300.0, 5000.0]),
    sigma=st.sampled_from([0.0, 0.3, 0.9, 3.0]),
    min_size=st.sampled_from([0, 1, 3, 10, 100]),
)
def test_labels_equal_scikit_image(
    seed: int, height: int, width: int, values: int, scale: float, sigma: float, min_size: int
) -> None:
    draw = np.random.default_rng(seed)
    step = 255 // max(values - 1, 1)
    image = (draw.integers(0, values, (height, width, 3)) * step).astype(np.uint8)
    search = SearchSettings(scale, sigma, min_size)
    np.testing.assert_array_equal(segment(image, search), plain_segment(image, search))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_labels_of_photographs_equal_scikit_image(name: str) -> None:
    image = getattr(data, name)()
    search = SearchSettings()
    found = segment(image, search)
    np.testing.assert_array_equal(found, plain_segment(image, search))
    assert found.max() > 10


def test_pictures_with_flat_areas_equal_scikit_image() -> None:
    # the second half of the sort is all ties: which comes first decides
    image = picture(120, 160, seed=1)
    image[:, 40:90] = 255
    image[30:60] = image[60:90]
    search = SearchSettings(scale=80, sigma=0.0, min_size=7)
    np.testing.assert_array_equal(segment(image, search), plain_segment(image, search))


def test_numbers_go_by_the_first_pixels() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[:, 4:] = 255
    image[4:, :4] = 120
    found = segment(image, SearchSettings(scale=1, sigma=0, min_size=1))
    assert found.dtype == np.int64
    assert found[0, 0] == 0
    assert found[0, 7] == 1
    assert found[7, 0] == 2
    assert np.unique(found).tolist() == [0, 1, 2]


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.4 or less")
        return load(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "soco_ext.proposals.edge_joining")
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="needs Numba: Numba needs NumPy.*pip install -U numba"):
        compiled_joining()


def test_compiled_without_a_folder_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it = edge_joining.njit

    def nowhere(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(**options)

    monkeypatch.setattr(edge_joining, "njit", nowhere)
    double = edge_joining._compiled(lambda value: 2 * value)
    assert double(21) == 42


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", 0.0),
        ("scale", float("nan")),
        ("sigma", -0.1),
        ("min_size", -1),
        ("min_size", 2**31),
    ],
)
def test_settings_outside_their_range(name: str, value: float) -> None:
    option = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{option}: {value}.*give a number"):
        SearchSettings(**{name: value})  # type: ignore[arg-type]
