"""prepare_data.py soco-proposals on small trees: sources, resuming, parts, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ext_common.data.box_file import BoxFile
from ext_common.images import read_image
from soco_ext.proposals.filtering import BoxFilter
from soco_ext.proposals.finders import filtered_boxes
from soco_ext.proposals.generation import journal_of
from soco_ext.proposals.proposal_file import open_proposals
from soco_ext.proposals.segmentation import SearchSettings
from soco_ext.proposals.selective_search import selective_search
from tests.ext_common.annotation_files import box, content, write
from tests.ext_common.tar_files import write_tar
from tests.soco_ext.scenes import scene, write_scenes
from tests.tools.prepare_runs import TOOL, run

FAST = ("--scale", "50", "--min-size", "20")
SIZE = (90, 120)


def all_boxes(file: BoxFile) -> dict[str, list[list[float]]]:
    return {file.name(n): file.boxes(n).tolist() for n in range(len(file))}


def test_authors_search_over_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_scenes(tmp_path / "tree", 5, size_hw=SIZE)
    (tmp_path / "tree" / "list.txt").write_text("no image")
    output = tmp_path / "out" / "p"
    words = ("soco-proposals", "--images", tmp_path / "tree", *FAST)
    assert run(*words, "--output", output, "--workers", "2") == 0
    assert "5 images" in capsys.readouterr().out
    file = open_proposals(output, check=True)
    assert [file.name(n) for n in range(len(file))] == names
    assert file.settings["strategy"] == "ratio3size0308post"
    for place, name in enumerate(names):
        pixels = read_image(tmp_path / "tree" / name, format="RGB")
        rects = selective_search(pixels, SearchSettings(50, 0.9, 20)).rects_T4
        wanted = filtered_boxes(rects, SIZE, BoxFilter.parse("ratio3size0308post"))
        np.testing.assert_array_equal(file.boxes(place), wanted)
        assert file.size(place) == SIZE
    assert file.counts().sum() > 0
    assert not journal_of(output).exists()
    assert run(*words, "--output", tmp_path / "alone", "--workers", "1") == 0
    assert (tmp_path / "alone").read_bytes() == output.read_bytes()


@pytest.mark.parametrize("source", ["opencv-fast", "opencv-single", "random"])
def test_other_sources(tmp_path: Path, source: str) -> None:
    write_scenes(tmp_path / "tree", 2, size_hw=SIZE)
    words = ("soco-proposals", "--images", tmp_path / "tree", "--source", source)
    assert run(*words, "--output", tmp_path / "p", "--strategy", "none", "--workers", "1") == 0
    file = open_proposals(tmp_path / "p")
    assert file.settings["source"] == source
    for place in range(2):
        boxes = file.boxes(place)
        assert len(boxes) > 0
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= SIZE[1] - 1).all()
        assert (boxes[:, 3] <= SIZE[0] - 1).all()


def test_parts_make_the_whole(tmp_path: Path) -> None:
    write_scenes(tmp_path / "tree", 7, size_hw=SIZE)
    words = (
        "soco-proposals",
        "--images",
        tmp_path / "tree",
        "--source",
        "random",
        "--workers",
        "1",
    )
    assert run(*words, "--output", tmp_path / "whole") == 0
    parts = [tmp_path / f"p{n}" for n in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        assert run(*words, "--output", part, "--shard", f"{number}/3") == 0
    assert run("soco-proposals", "--merge", *parts, "--output", tmp_path / "merged") == 0
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    assert run(*words, "--output", tmp_path / "q", "--shard", "4/3") == 1
    assert run(*words, "--output", tmp_path / "q", "--shard", "one") == 1


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write_scenes(tmp_path / "tree", 24, size_hw=(120, 160))
    words = ["soco-proposals", "--images", str(tmp_path / "tree"), "--workers", "1"]
    output = tmp_path / "p"
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    killed = subprocess.Popen(
        [sys.executable, str(TOOL), *words, "--output", str(output)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = journal_of(output)
    while killed.poll() is None and not (journal.exists() and journal.stat().st_size > 400):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not output.exists()
    before = journal.read_bytes()
    assert len(before) > 400
    first = (tmp_path / "tree" / "n0000" / "0.png").rename(tmp_path / "moved.png")
    # the first image is in the journal and is not read again, although it changed
    Image.fromarray(scene(99, (120, 160))).save(tmp_path / "tree" / "n0000" / "0.png")
    assert run(*words, "--output", output) == 0
    first.rename(tmp_path / "tree" / "n0000" / "0.png")
    assert run(*words, "--output", tmp_path / "again") == 0
    assert output.read_bytes() == (tmp_path / "again").read_bytes()


def test_an_unfinished_run_of_other_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "tree", 3, size_hw=SIZE)
    (tmp_path / "tree" / "z.png").write_bytes(b"no image")
    words = ("soco-proposals", "--images", tmp_path / "tree", "--source", "random")
    words = (*words, "--workers", "1", "--output", tmp_path / "p")
    assert run(*words) == 1
    assert "z.png" in capsys.readouterr().err
    assert run(*words, "--seed", "1", "--bad-files", "skip") == 1
    assert "other options" in capsys.readouterr().err
    assert run(*words, "--seed", "1", "--bad-files", "skip", "--restart") == 0
    assert "1 images left out" in capsys.readouterr().out
    assert len(open_proposals(tmp_path / "p")) == 3


def test_boxes_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = content([(60, 80), (60, 80)], [box(1, 1, 10, [3.0, 4.0, 40.0, 35.5])])
    value["annotations"].append({**box(2, 1, 10, [0.0, 0.0, 50.0, 50.0]), "iscrowd": 1})
    for number in (1, 2):
        Image.fromarray(scene(number)).save(tmp_path / f"{number}.png")
    words = ("soco-proposals", "--images", tmp_path, "--source", "coco", "--workers", "1")
    assert run(*words, "--output", tmp_path / "p") == 1
    assert "add --boxes FILE" in capsys.readouterr().err
    write(tmp_path / "ann.json", value)
    words = (*words, "--boxes", tmp_path / "ann.json", "--output", tmp_path / "p")
    assert run(*words) == 0
    assert all_boxes(open_proposals(tmp_path / "p")) == {"1.png": [[3, 4, 42, 38.5]], "2.png": []}
    Image.fromarray(scene(3)).save(tmp_path / "3.png")
    assert run(*words) == 1
    assert "does not have this image" in capsys.readouterr().err
    assert run(*words, "--bad-files", "skip") == 0


def test_the_authors_json_and_back(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "tree", 4, size_hw=SIZE)
    words = ("soco-proposals", "--images", tmp_path / "tree", "--workers", "1")
    first, second = tmp_path / "p", tmp_path / "q"
    assert run(*words, "--source", "random", "--output", first) == 0
    published = tmp_path / "train_ratio3size0308post.json"
    assert run("soco-proposals", "--export-json", first, "--output", published) == 0
    assert set(json.loads(published.read_text())) == {str(n) for n in range(4)}
    words = (*words, "--source", "authors-json", "--boxes", published)
    assert run(*words, "--output", second) == 0
    assert all_boxes(open_proposals(second)) == all_boxes(open_proposals(first))
    assert set(all_boxes(open_proposals(second))) == set(names)


def test_tar_archives(tmp_path: Path) -> None:
    write_scenes(tmp_path / "tree", 4, size_hw=SIZE, classes=2)
    tars = tmp_path / "tars"
    for folder in ("n0000", "n0001"):
        members = {p.name: p.read_bytes() for p in sorted((tmp_path / "tree" / folder).iterdir())}
        write_tar(tars / f"{folder}.tar", {**members, "list.txt": b"no image"})
    words = ("soco-proposals", "--workers", "1", *FAST)
    assert run(*words, "--tars", tars, "--output", tmp_path / "p") == 0
    assert run(*words, "--images", tmp_path / "tree", "--output", tmp_path / "q") == 0
    packed, loose = (all_boxes(open_proposals(tmp_path / name)) for name in ("p", "q"))
    assert packed == {name.replace("/", ".tar/"): boxes for name, boxes in loose.items()}


def test_grey_cmyk_and_one_pixel_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(scene(1, SIZE)).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(scene(2, SIZE)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(scene(3, (1, 1))).save(tmp_path / "one.png")
    words = ("soco-proposals", "--images", tmp_path, "--workers", "1", *FAST)
    for source in ("authors", "opencv-single", "random"):
        assert run(*words, "--source", source, "--output", tmp_path / source) == 0
        file = open_proposals(tmp_path / source)
        assert [file.name(n) for n in range(3)] == ["cmyk.jpg", "grey.jpg", "one.png"]
        assert file.boxes(2).shape == (0, 4)
        assert file.size(2) == (1, 1)
        assert f"{(file.counts() == 0).sum()} images have none" in capsys.readouterr().out
    file = open_proposals(tmp_path / "authors")
    for place, name in enumerate(("cmyk.jpg", "grey.jpg")):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        rects = selective_search(pixels, SearchSettings(50, 0.9, 20)).rects_T4
        wanted = filtered_boxes(rects, SIZE, BoxFilter.parse("ratio3size0308post"))
        np.testing.assert_array_equal(file.boxes(place), wanted)
        assert len(wanted) > 0


def test_an_image_of_one_colour_has_no_proposals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (120, 90), (90, 90, 90)).save(tmp_path / "flat.png")
    Image.fromarray(scene(3, SIZE)).save(tmp_path / "scene.png")
    words = ("soco-proposals", "--images", tmp_path, "--workers", "1", *FAST)
    assert run(*words, "--output", tmp_path / "p", "--strategy", "ratio3size0308") == 0
    assert "1 images have none" in capsys.readouterr().out
    file = open_proposals(tmp_path / "p")
    assert (file.counts() == 0).tolist() == [True, False]
    assert file.size(0) == SIZE
    # "post" falls back to the region of the whole picture
    assert run(*words, "--output", tmp_path / "q") == 0
    assert open_proposals(tmp_path / "q").boxes(0).tolist() == [[0, 0, 118, 88]]


def test_wrong_folders_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("soco-proposals", "--output", tmp_path / "p", "--images")
    assert run(*words, tmp_path / "none") == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(*words, tmp_path / "empty") == 1
    assert "no images" in capsys.readouterr().err
    write_scenes(tmp_path / "tree", 1)
    assert run(*words, tmp_path / "tree", "--strategy", "ratio") == 1
    assert "unknown filter strategy" in capsys.readouterr().err
    assert run(*words, tmp_path / "tree", "--source", "rpn") == 1
    assert "--config-file" in capsys.readouterr().err
