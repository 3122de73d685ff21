"""The sheet of views: boxes at the right pixels, one colour per object, the command on files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ext_common.drawing import class_color
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_options import ViewOptions
from soco_ext.evaluation.view_pictures import (
    CROP_LINE,
    UNMATCHED,
    ViewCell,
    draw_boxes,
    object_colours,
    view_cells,
)
from tests.soco_ext.scenes import scene, write_scenes
from tests.soco_ext.tiny_soco import CONFIGS
from tools import prepare_data

RED, BLUE = (255, 0, 0), (0, 0, 255)


def is_colour(pixels_HW3: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (pixels_HW3 == np.array(colour)).all(axis=2)
    return found


def test_boxes_are_at_their_pixels_in_the_colour_of_their_object() -> None:
    view = np.full((50, 50, 3), 90, dtype=np.uint8)
    shares = np.array([[0.1, 0.2, 0.5, 0.6, 3], [0.4, 0.3, 0.9, 0.8, 7], [0.0, 0.0, 0.9, 1.0, 9]])
    repeated = np.concatenate([shares, shares[:1]])
    drawn = draw_boxes(view, repeated, {3.0: RED, 7.0: BLUE}, 100)
    assert drawn.shape == (100, 100, 3)
    for colour, (x1, y1, x2, y2) in ((RED, (10, 20, 50, 60)), (BLUE, (40, 30, 90, 80))):
        rows, columns = np.nonzero(is_colour(drawn, colour))
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (x1, y1, x2, y2)
        assert is_colour(drawn, colour)[y2, [x1, x2]].all()
    grey = is_colour(drawn, UNMATCHED)
    assert grey[99, :91].all()  # beyond the border: drawn on it
    assert grey[:, 90].sum() > 45
    assert not is_colour(drawn[86:97, 2:88], RED).any()


def test_an_object_has_one_colour_and_others_have_others() -> None:
    first = np.array([[0, 0, 1, 1, 12.0], [0, 0, 1, 1, 5.0]])
    colours = object_colours([first, np.array([[0, 0, 1, 1, 12.0], [0, 0, 1, 1, 30.0]])])
    assert colours == {5.0: class_color(0), 12.0: class_color(1), 30.0: class_color(2)}


def cells_of(options: ViewOptions, boxes: NDArray[np.number], seed: int = 0) -> list[ViewCell]:
    draws = GeneratorDraws(np.random.default_rng(seed))
    return view_cells(ViewMaker(options), scene(), boxes, draws, name="a.png", side=120)


def test_cells_show_what_the_training_would_see() -> None:
    """One box, no flip, no jitter: its place in both views follows from the crop in the picture."""
    options = ViewOptions(image_size=60, image3_size=30, colour="none", flip=0.0, jitter_prob=0.0)
    cells = cells_of(options, np.array([[20, 15, 59, 44]]))
    assert [cell.caption for cell in cells] == [
        "a.png",
        "view 1: whole 60",
        "view 2: crop 60",
        "a.png",
        "view 1: whole 60",
        "view 3: crop 30",
    ]
    colour = class_color(0)
    for picture, whole, crop in (cells[:3], cells[3:]):
        assert picture.pixels_HW3.shape == (90, 120, 3)  # 60 x 80 pixels, 1.5 times
        rows, columns = np.nonzero(is_colour(picture.pixels_HW3, CROP_LINE))
        left, top, right, bottom = columns.min(), rows.min(), columns.max(), rows.max()
        assert is_colour(picture.pixels_HW3, UNMATCHED).any()
        rows, columns = np.nonzero(is_colour(whole.pixels_HW3, colour))
        # 20..59 of 80 and 15..44 of 60, over 120 pixels
        assert (columns.min(), columns.max()) == (30, 88)
        assert (rows.min(), rows.max()) == (30, 88)
        rows, columns = np.nonzero(is_colour(crop.pixels_HW3, colour))
        scale_x, scale_y = 120 / (right - left + 1.5), 120 / (bottom - top + 1.5)
        wanted_x = np.clip((np.array([30, 88.5]) - left) * scale_x, 0, 119)
        wanted_y = np.clip((np.array([22.5, 66]) - top) * scale_y, 0, 119)
        np.testing.assert_allclose([columns.min(), columns.max()], wanted_x, atol=3)
        np.testing.assert_allclose([rows.min(), rows.max()], wanted_y, atol=3)


def test_mirrored_views_say_so_and_boxes_go_along() -> None:
    plain, mirrored = (
        cells_of(
            ViewOptions(image_size=60, colour="none", flip=flip, jitter_prob=0.0),
            np.array([[0, 15, 19, 44]]),
        )[1]
        for flip in (0.0, 1.0)
    )
    assert mirrored.caption == "view 1: whole 60, mirrored"
    one, two = (
        np.nonzero(is_colour(cell.pixels_HW3, class_color(0)))[1] for cell in (plain, mirrored)
    )
    assert one.max() < 40
    assert two.min() > 80


def words_of(folder: Path, *more: str) -> list[str]:
    words = ["soco-views", "--config-file", str(CONFIGS / "SoCo_tiny.yaml")]
    return [*words, "--images", str(folder / "photos"), *more]


def test_command_draws_a_row_per_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "photos", 5)
    made = ["soco-proposals", "--images", str(tmp_path / "photos"), "--source", "random"]
    proposals = str(tmp_path / "p")
    assert prepare_data.main([*made, "--output", proposals, "--workers", "1"]) == 0
    sheets = []
    for name, more in (
        ("a.png", ["--proposals", proposals]),
        ("b.png", ["--proposals", proposals]),
        ("c.png", ["--proposals", proposals, "--seed", "1"]),
        ("d.png", []),
        ("e.png", ["--proposals", proposals, "--opts", "SOCO.VIEWS.PLAN", "star_4view"]),
    ):
        options = ["--output", str(tmp_path / name), "--count", "2", "--side", "100", *more]
        assert prepare_data.main(words_of(tmp_path, *options)) == 0
        with Image.open(tmp_path / name) as sheet:
            sheets.append(np.array(sheet))
    said = capsys.readouterr().out
    assert "2 pictures, 4 pairs of views" in said
    assert "2 pictures, 6 pairs of views" in said
    assert "no --proposals: random boxes" in said
    gap = 4
    assert sheets[0].shape[1] == 3 * (100 + gap) + gap
    assert 4 * 100 < sheets[0].shape[0] < 4 * 140
    assert sheets[4].shape[0] > sheets[0].shape[0]
    np.testing.assert_array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])
    assert is_colour(sheets[0], class_color(0)).any()


def test_command_refuses_what_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "photos", 2)
    write_scenes(tmp_path / "others" / "below", 2)
    proposals = str(tmp_path / "p")
    made = ["soco-proposals", "--images", str(tmp_path / "others"), "--source", "random"]
    assert prepare_data.main([*made, "--output", proposals, "--workers", "1"]) == 0
    output = tmp_path / "views.png"
    words = words_of(tmp_path, "--output", str(output))
    assert prepare_data.main([*words, "--proposals", proposals]) == 1
    assert "made from another folder" in capsys.readouterr().err
    assert prepare_data.main([*words, "--count", "0"]) == 1
    assert "--count" in capsys.readouterr().err
    assert not output.exists()
