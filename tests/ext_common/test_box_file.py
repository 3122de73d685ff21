"""Box files: what is written is read, in few bytes, by any process; and what cannot be used."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ext_common.data import box_file
from ext_common.data.array_file import write_arrays
from ext_common.data.box_file import BoxFile, ImageBoxes, write_boxes
from ext_common.errors import DatasetError

MAKER = "some-command"


def image(
    name: str, count: int, seed: int = 0, *, whole: bool = True, scores: bool = False
) -> ImageBoxes:
    draw = np.random.default_rng(seed)
    boxes = draw.uniform(0, 400, (count, 4))
    values = draw.normal(size=count).astype(np.float32) if scores else None
    return ImageBoxes(name, (300 + seed, 400), np.floor(boxes) if whole else boxes, values)


@pytest.mark.parametrize("scores", [False, True])
def test_what_is_written_is_read(tmp_path: Path, scores: bool) -> None:
    # also names that sort differently as text and as bytes, and one that is no UTF-8
    names = ["b/1.jpg", "a/1.jpg", "a/1.b.jpg", "ä/1.jpg", "a-1.jpg", "z\udcff.jpg", "Z/1.JPG"]
    images = [image(name, n, n, scores=scores) for n, name in enumerate(names)]
    path = tmp_path / "p"
    assert write_boxes(path, images, MAKER, {"source": "test"}) == len(names)
    file = BoxFile(path, MAKER, check=True)
    assert len(file) == len(names)
    assert file.settings == {"source": "test"}
    for wanted in images:
        place = file.find(wanted.name)
        assert place is not None
        found = file.image(place)
        assert found.name == file.name(place) == wanted.name
        assert found.size_hw == file.size(place) == wanted.size_hw
        assert file.boxes(place).dtype == np.float32
        np.testing.assert_array_equal(file.boxes(place), wanted.boxes_K4)
        np.testing.assert_array_equal(found.boxes_K4, wanted.boxes_K4)
        assert (found.scores_K is not None) == scores
        if scores:
            np.testing.assert_array_equal(found.scores_K, wanted.scores_K)
    for missing in ("", "a", "a/1", "a/1.jpg ", "zz", "0"):
        assert file.find(missing) is None
    in_order = sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))
    assert [each.name for each in file.items()] == in_order
    assert file.counts().sum() == sum(range(len(names)))
    with pytest.raises(IndexError):
        file.boxes(len(names))
    with pytest.raises(IndexError):
        file.name(-1)


def test_names_of_one_digest_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_file, "name_digest", lambda name: np.uint64(len(name)))
    names = ["aa", "b", "ab", "ba", "c"]
    write_boxes(tmp_path / "p", [image(name, n) for n, name in enumerate(names)], MAKER, {})
    file = BoxFile(tmp_path / "p", MAKER)
    places = [file.find(name) for name in names]
    assert [file.name(place) for place in places if place is not None] == names
    assert file.find("bb") is None
    assert file.find("abc") is None


def test_whole_pixels_take_eight_bytes_a_box_and_fractions_are_kept(tmp_path: Path) -> None:
    sizes = []
    for whole in (True, False):
        images = [image(f"{n}.jpg", 50, n, whole=whole) for n in range(20)]
        write_boxes(tmp_path / "p", images, MAKER, {})
        sizes.append((tmp_path / "p").stat().st_size)
        file = BoxFile(tmp_path / "p", MAKER)
        place = file.find("7.jpg")
        assert place is not None
        np.testing.assert_allclose(file.boxes(place), images[7].boxes_K4, rtol=1e-6)
    assert sizes[1] - sizes[0] == 20 * 50 * 8


def test_a_copy_in_another_process_maps_the_file_itself(tmp_path: Path) -> None:
    write_boxes(tmp_path / "p", [image(f"{n}.jpg", 200, n) for n in range(50)], MAKER, {})
    file = BoxFile(tmp_path / "p", MAKER)
    content = pickle.dumps(file)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content).boxes(3), file.boxes(3))


def test_a_file_of_no_images_is_a_file(tmp_path: Path) -> None:
    assert write_boxes(tmp_path / "p", [], MAKER, {}) == 0
    file = BoxFile(tmp_path / "p", MAKER, check=True)
    assert len(file) == 0
    assert file.find("a") is None
    assert list(file.items()) == []


def test_images_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(DatasetError, match=r"'a\.jpg' is there twice"):
        write_boxes(path, [image("a.jpg", 1), image("a.jpg", 2)], MAKER, {})
    bad = ImageBoxes("a.jpg", (5, 5), np.full((1, 4), np.nan))
    with pytest.raises(DatasetError, match="no numbers"):
        write_boxes(path, [bad], MAKER, {})
    with pytest.raises(DatasetError, match=r"b\.jpg: no scores for 2 boxes"):
        write_boxes(path, [image("a.jpg", 1, scores=True), image("b.jpg", 2)], MAKER, {})
    short = ImageBoxes("a.jpg", (5, 5), np.zeros((2, 4)), np.zeros(1))
    with pytest.raises(DatasetError, match="1 scores for 2 boxes"):
        write_boxes(path, [short], MAKER, {})
    assert not path.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p"
    with pytest.raises(DatasetError, match=r"no such file.*make it: .*some-command"):
        BoxFile(path, MAKER)
    path.write_bytes(b"[]" * 100)
    with pytest.raises(DatasetError, match=r"another kind of file.*delete it.*some-command"):
        BoxFile(path, MAKER)
    write_arrays(path, {"version": 3}, {})
    with pytest.raises(DatasetError, match="no file of boxes"):
        BoxFile(path, MAKER)
    write_boxes(path, [image("a.jpg", 90)], MAKER, {})
    with pytest.raises(DatasetError, match="made by some-command, not another"):
        BoxFile(path, "another")
    content = bytearray(path.read_bytes())
    content[-64] ^= 1  # of the last array; behind it there is padding
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        BoxFile(path, MAKER, check=True)
    path.write_bytes(content[:-500])
    with pytest.raises(DatasetError, match="cut off"):
        BoxFile(path, MAKER)
