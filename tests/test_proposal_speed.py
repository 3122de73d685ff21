from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.proposal_file import main as proposal_file
from benchmarks.proposal_file import measure as file_cost
from benchmarks.proposal_file import name_of
from benchmarks.proposal_speed import measure, row_of, write_pictures
from soco_ext.proposals.finders import OpenCVSearch, RandomFinder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("speed") / "pictures", 2)


def test_a_line_has_both_scalings(pictures: Path) -> None:
    row = row_of(OpenCVSearch("single"), pictures, 2, scaling=True)
    assert row[0] == "opencv-single"
    assert len(row) == 8
    assert all(float(cell) > 0 for cell in (*row[1:3], *row[6:]))
    for cell in row[4:6]:
        wall, cpu = (float(part) for part in cell.split("/"))
        assert wall > 0
        assert cpu > 0
    assert row_of(RandomFinder(), pictures, 2, scaling=True)[4:] == ["-"] * 4
    assert len(row_of(RandomFinder(), pictures, 2, scaling=False)) == 4


def test_the_time_of_workers_counts(pictures: Path) -> None:
    # a search of two such pictures takes far longer than this process needs to collect them
    cost = measure(OpenCVSearch("single"), pictures, 2)
    assert cost.cpu > 0.05
    assert cost.boxes > 0


def test_the_size_of_a_file_follows_from_images_boxes_and_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small, large = (file_cost(tmp_path / "p", count, 3).size for count in (1000, 9000))
    names = sum(len(name_of(number)) for number in range(1000, 9000))
    assert large - small == pytest.approx(8000 * (3 * 8 + 36) + names, abs=1000)
    proposal_file(["--images", "20", "--boxes", "2"])
    assert re.search(
        r"20 images with 2 boxes each: 0\.0 MB.*found and read", capsys.readouterr().out
    )
