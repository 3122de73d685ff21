"""Drawn pictures: what is drawn where, and that no label covers another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ext_common.drawing import class_color, contact_sheet, draw_detections
from ext_common.results import Detections, encode_mask

NAMES = ("red square", "blue disc", "größe 東京", "a very long name of a class " * 5)
GREY = 128


def plain(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def found(
    shape: tuple[int, int],
    boxes: list[list[float]],
    ids: list[int] | None = None,
    scores: list[float] | None = None,
    masks: list[np.ndarray] | None = None,
) -> Detections:
    count = len(boxes)
    return Detections(
        "a.jpg",
        shape,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(scores if scores is not None else [0.9] * count),
        np.array(ids if ids is not None else [0] * count),
        NAMES,
        None if masks is None else tuple(encode_mask(mask) for mask in masks),
    )


Texts = list[tuple[str, tuple[float, float, float, float]]]


def record_texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Every text that is drawn, with the rectangle that its ink covers."""
    texts: Texts = []
    original = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, fill: Any, font: Any, anchor: str) -> None:
        texts.append((text, self.textbbox(xy, text, font, anchor)))
        original(self, xy, text, fill, font, anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Texts:
    return record_texts(monkeypatch)


def test_names_and_scores_are_written(written: Texts) -> None:
    draw_detections(
        plain(400, 700),
        found((400, 700), [[50, 60, 200, 300], [300, 100, 600, 350]], [1, 2], [0.876, 0.5]),
    )
    assert [text for text, _ in written] == ["blue disc 88%", "größe 東京 50%"]


def test_box_lines_are_where_the_box_is() -> None:
    drawn = draw_detections(plain(700, 800), found((700, 800), [[100, 200, 400, 600]]))
    assert drawn.shape == (700, 800, 3)
    color = list(class_color(0))
    for y, x in [(400, 100), (400, 399), (599, 250), (200, 390)]:
        assert drawn[y, x].tolist() == color
    # untouched inside, and outside of the box and its label
    assert (drawn[260:590, 110:390] == GREY).all()
    assert (drawn[:150] == GREY).all()
    assert (drawn[:, 410:] == GREY).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((160, 120), 4.0), ((200, 256), 2.5), ((640, 9), 1)]
)
def test_small_pictures_are_enlarged(shape: tuple[int, int], expected: float) -> None:
    drawn = draw_detections(plain(*shape), found(shape, []))
    assert drawn.shape == (round(shape[0] * expected), round(shape[1] * expected), 3)
    assert (drawn == GREY).all()


def test_box_of_an_enlarged_picture_is_enlarged_with_it() -> None:
    drawn = draw_detections(plain(160, 160), found((160, 160), [[40, 60, 120, 140]]))
    assert drawn[400, 160].tolist() == list(class_color(0))
    assert drawn[400, 479].tolist() == list(class_color(0))
    assert drawn[559, 300].tolist() == list(class_color(0))


@pytest.mark.parametrize("side", [160, 640])
def test_mask_is_filled_and_outlined(side: int) -> None:
    mask = np.zeros((side, side), dtype=bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    box = [0.0, 0.0, float(side), float(side)]
    drawn = draw_detections(plain(side, side), found((side, side), [box], masks=[mask]))
    color = np.array(class_color(0))
    blended = 0.6 * GREY + 0.4 * color
    assert np.abs(drawn[240, 240] - blended).max() <= 1
    assert (drawn[400, 400] == GREY).all()
    row = drawn[240].astype(int)
    assert (np.abs(row - color).max(axis=1) == 0)[150:170].any()


def test_better_detection_is_on_top() -> None:
    box = [100.0, 100.0, 500.0, 500.0]
    for scores, top in (([0.9, 0.3], 0), ([0.3, 0.9], 1)):
        drawn = draw_detections(plain(640, 640), found((640, 640), [box, box], [0, 1], scores))
        assert drawn[499, 300].tolist() == list(class_color(top))


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 40),
    shape=st.sampled_from([(160, 160), (200, 256), (480, 640), (90, 900), (900, 90)]),
    seed=st.integers(0, 99),
)
def test_labels_stay_inside_and_apart(count: int, shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (count, 2, 2)) * (shape[1], shape[0])
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    ids, scores = rng.integers(0, 4, count), rng.random(count)
    with pytest.MonkeyPatch.context() as patch:
        texts = record_texts(patch)
        drawn = draw_detections(
            plain(*shape), found(shape, boxes.tolist(), ids.tolist(), scores.tolist())
        )
    height, width = drawn.shape[:2]
    places = [place for _, place in texts]
    assert len(places) >= min(count, 1)
    for index, (x1, y1, x2, y2) in enumerate(places):
        assert x1 >= 0
        assert y1 >= 0
        assert x2 <= width
        assert y2 <= height
        for other in places[:index]:
            apart = x2 <= other[0] or other[2] <= x1 or y2 <= other[1] or other[3] <= y1
            assert apart, (texts, shape)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, dtype=bool)
    box = [0.0, 0.0, float(shape[1]), float(shape[0])]
    drawn = draw_detections(plain(*shape), found(shape, [box], masks=[mask]))
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3


def test_same_input_gives_the_same_bytes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    before = image.copy()
    detections = found((160, 200), [[10, 20, 90, 80], [30, 30, 150, 150]], [0, 3])
    first, second = (draw_detections(image, detections) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)


def test_neighbouring_classes_have_distant_colours() -> None:
    colors = np.array([class_color(index) for index in range(24)], dtype=float)
    assert len(np.unique(colors, axis=0)) == 24
    for index in range(23):
        assert np.abs(colors[index] - colors[index + 1]).max() > 80


def test_contact_sheet_shows_every_picture_and_caption(written: Texts) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [
        np.full((height, width, 3), color, dtype=np.uint8)
        for color, (height, width) in zip(colors, [(50, 100), (300, 100), (1, 1)], strict=True)
    ]
    sheet = contact_sheet(images, ["one.jpg", "two\n.jpg", "x" * 200], columns=2, cell=200)
    areas = [int((sheet == color).all(axis=2).sum()) for color in colors]
    assert areas[0] == 200 * 100
    assert abs(areas[1] - 67 * 200) <= 200
    assert areas[2] == 200 * 200
    assert [text for text, _ in written[:2]] == ["one.jpg", "two .jpg"]
    assert written[2][0].endswith("…")
    assert all(place[2] <= sheet.shape[1] and place[3] <= sheet.shape[0] for _, place in written)


def test_contact_sheet_of_one() -> None:
    sheet = contact_sheet([plain(10, 10)], ["a"], columns=5, cell=100)
    assert sheet.shape[1] < 120
    Image.fromarray(sheet)


@pytest.mark.parametrize(("count", "columns"), [(0, 3), (2, 3), (1, 0)])
def test_contact_sheet_refuses_nonsense(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="1 captions"):
        contact_sheet([plain(5, 5)] * count, ["a"], columns)
