"""What soco-proposals is made from: files of boxes, numbers, parts, and what a resumed run compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from ext_common.data.box_file import ImageBoxes
from ext_common.errors import DatasetError
from soco_ext.proposals.coco_boxes import clip_rects
from soco_ext.proposals.generation import journal_of
from soco_ext.proposals.inputs import weights_digest
from soco_ext.proposals.proposal_file import merge_files, open_proposals, write_proposals
from tests.ext_common.annotation_files import box, content, write
from tests.ext_common.tar_files import write_tar
from tests.ext_common.tiny_detectors import tiny_config
from tests.soco_ext.scenes import scene, write_scenes
from tests.tools.prepare_runs import run

ALONE = ("--workers", "1")
RECT = [3, 4, 40, 36]
BOX = [3, 4, 42, 39]


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(number)).save(folder / name)
    return folder


def boxes_of(path: Path) -> dict[str, list[list[float]]]:
    file = open_proposals(path, check=True)
    return {file.name(n): file.boxes(n).tolist() for n in range(len(file))}


def published(tree: Path, path: Path, *more: str | Path) -> int:
    words = ("soco-proposals", "--images", tree, "--source", "authors-json", "--boxes", path)
    return run(*words, *ALONE, "--output", path.parent / "p", *more)


def test_authors_json_without_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = pictures(tmp_path / "tree", "a.jpg", "b.jpg")
    path = write(tmp_path / "train_none.json", {"b": [RECT]})
    assert published(tree, path) == 1
    error = capsys.readouterr().err
    assert "a.jpg" in error
    assert "train_none.json has no key 'a'" in error
    assert "made from these images" in error
    assert not journal_of(tmp_path / "p").exists()
    write(path, {"a": [], "b": [RECT]})
    assert published(tree, path) == 0
    assert boxes_of(tmp_path / "p") == {"a.jpg": [], "b.jpg": [BOX]}
    # the authors' first file leaves empty images out and lists them beside it
    write(path, {"b": [RECT]})
    (tmp_path / "train_noneno_props_images.txt").write_text("a\n")
    assert published(tree, path) == 0
    assert boxes_of(tmp_path / "p") == {"a.jpg": [], "b.jpg": [BOX]}


@pytest.mark.parametrize(
    "value", [7, None, {"x": 1}, [1, 2, 3, 4], [[1, 2, 3]], [[1, 2, 3, "4"]], [[1, 2, 3, True]]]
)
def test_authors_json_of_other_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    tree = pictures(tmp_path / "tree", "a.jpg")
    assert published(tree, write(tmp_path / "any.json", {"a": [RECT], "info": value})) == 1
    error = capsys.readouterr().err
    assert "any.json" in error
    assert "key 'info' is no list of [x, y, width, height]" in error
    assert not journal_of(tmp_path / "p").exists()


@pytest.mark.parametrize("names", [("c0/0.jpg", "c1/0.jpg"), ("a.1.jpg", "a.2.jpg")])
def test_authors_json_cannot_serve_two_images_of_one_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    tree = pictures(tmp_path / "tree", *names)
    assert published(tree, write(tmp_path / "j.json", {"0": [RECT], "a": [RECT]})) == 1
    error = capsys.readouterr().err
    assert "two images of one key" in error
    assert all(name in error for name in names)
    assert not journal_of(tmp_path / "p").exists()
    # a part has one of them only, and would hide it
    path = tmp_path / "j.json"
    assert published(tree, path, "--shard", "1/2") == 1


def interrupted(words: tuple[str | Path, ...], tree: Path, output: Path) -> None:
    """A run that stops at its last image."""
    (tree / "z.png").write_bytes(b"no image")
    assert run(*words, "--output", output) == 1
    assert journal_of(output).exists()
    Image.fromarray(scene(9)).save(tree / "z.png")


def test_a_resumed_run_of_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (pictures(tmp_path / name, "a.png", "z.png") for name in ("first", "second"))
    words = ("soco-proposals", "--source", "random", *ALONE)
    interrupted((*words, "--images", first), first, tmp_path / "p")
    capsys.readouterr()
    assert run(*words, "--images", second, "--output", tmp_path / "p") == 1
    error = capsys.readouterr().err
    assert f"images '{first}', now '{second}'" in error
    assert "--restart" in error
    (tmp_path / "link").symlink_to(first)
    assert run(*words, "--images", tmp_path / "link", "--output", tmp_path / "p") == 0
    assert "1 images were done before" in capsys.readouterr().out
    assert "images" not in open_proposals(tmp_path / "p").settings


def test_a_resumed_run_of_other_archives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = pictures(tmp_path / "tree", "a.png")
    good = (tree / "a.png").read_bytes()
    for folder, last in (("first", b"no image"), ("second", good)):
        write_tar(tmp_path / folder / "t.tar", {"a.png": good, "z.png": last})
    words = ("soco-proposals", "--source", "random", *ALONE, "--output", tmp_path / "p", "--tars")
    assert run(*words, tmp_path / "first") == 1
    capsys.readouterr()
    assert run(*words, tmp_path / "second") == 1
    assert "1 archives from" in capsys.readouterr().err


def test_a_resumed_run_with_another_file_of_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = pictures(tmp_path / "tree", "a.png", "z.png")
    for folder, rects in (("one", [RECT]), ("two", []), ("copy", [RECT])):
        write(tmp_path / folder / "j.json", {"a": rects, "z": [RECT]})
    words = ("soco-proposals", "--images", tree, "--source", "authors-json", *ALONE)
    interrupted((*words, "--boxes", tmp_path / "one" / "j.json"), tree, tmp_path / "p")
    capsys.readouterr()
    words = (*words, "--output", tmp_path / "p", "--boxes")
    assert run(*words, tmp_path / "two" / "j.json") == 1
    assert "boxes_digest" in capsys.readouterr().err
    assert run(*words, tmp_path / "copy" / "j.json") == 0


def test_parts_of_other_files_of_boxes_do_not_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = content([(60, 80), (60, 80)], [box(1, 1, 10, RECT)])
    trees = [pictures(tmp_path / name, "1.png", "2.png") for name in ("here", "there")]
    files = [write(tmp_path / name, value) for name in ("a.json", "b.json")]
    words = ("soco-proposals", "--source", "coco", *ALONE)
    parts = [tmp_path / "p1", tmp_path / "p2"]
    for number, (tree, file, part) in enumerate(zip(trees, files, parts, strict=True), start=1):
        more = ("--images", tree, "--boxes", file, "--output", part, "--shard", f"{number}/2")
        assert run(*words, *more) == 0
    # another folder and another name of the same file are all right
    assert run("soco-proposals", "--merge", *parts, "--output", tmp_path / "all") == 0
    assert boxes_of(tmp_path / "all") == {"1.png": [BOX], "2.png": []}
    write(files[1], {**value, "annotations": []})
    more = ("--images", trees[1], "--boxes", files[1], "--output", parts[1], "--shard", "2/2")
    assert run(*words, *more) == 0
    capsys.readouterr()
    assert run("soco-proposals", "--merge", *parts, "--output", tmp_path / "all") == 1
    assert "same options" in capsys.readouterr().err


def test_a_resumed_run_of_another_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = pictures(tmp_path / "tree", "a.png", "z.png")
    cfg = tiny_config()
    cfg.INPUT.MIN_SIZE_TEST = 64
    for seed, folder in enumerate(("first", "second", "copy")):
        torch.manual_seed(seed % 2)
        (tmp_path / folder).mkdir()
        torch.save({"model": build_model(cfg).state_dict()}, tmp_path / folder / "model.pth")
    config = tmp_path / "tiny.yaml"
    config.write_text(cfg.dump())
    words = ("soco-proposals", "--images", tree, "--source", "rpn", "--config-file", config, *ALONE)
    output = ("--output", tmp_path / "p", "--opts", "MODEL.WEIGHTS")
    (tree / "z.png").write_bytes(b"no image")
    assert run(*words, *output, tmp_path / "first" / "model.pth") == 1
    Image.fromarray(scene(9)).save(tree / "z.png")
    capsys.readouterr()
    assert run(*words, *output, tmp_path / "second" / "model.pth") == 1
    assert "weights_digest" in capsys.readouterr().err
    weights = (*output, tmp_path / "copy" / "model.pth")
    assert run(*words, *weights, "INPUT.MIN_SIZE_TEST", "32") == 1
    assert "config_digest" in capsys.readouterr().err
    cfg.INPUT.MIN_SIZE_TEST = 96
    config.write_text(cfg.dump())
    assert run(*words, *weights) == 1
    assert "config_digest" in capsys.readouterr().err
    assert run(*words, *weights, "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path)) == 0
    assert "1 images were done before" in capsys.readouterr().out


def test_the_digest_of_weights_sees_size_and_both_ends(tmp_path: Path) -> None:
    start = np.random.default_rng(0).integers(0, 256, 3 << 20, dtype=np.uint8)
    digests = set()
    for change in (None, 0, -1):
        content = start.copy()
        if change is not None:
            content[change] ^= 1
        (tmp_path / "w").write_bytes(content.tobytes())
        digests.add(weights_digest(tmp_path / "w"))
    (tmp_path / "w").write_bytes(start[: 1 << 20].tobytes() + start[-(1 << 20) :].tobytes())
    digests.add(weights_digest(tmp_path / "w"))
    assert len(digests) == 4


def coco(path: Path, *more: str | Path) -> int:
    words = ("soco-proposals", "--source", "coco", "--boxes", path, *ALONE)
    return run(*words, "--output", path.parent / "p", *more)


def test_coco_boxes_of_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = pictures(tmp_path / "tree", "1.png", "2.png")
    one, two = ((tree / name).read_bytes() for name in ("1.png", "2.png"))
    write_tar(tmp_path / "tars" / "a.tar", {"1.png": one})
    write_tar(tmp_path / "tars" / "b.tar", {"2.png": two})
    value = content([(60, 80), (60, 80)], [box(1, 2, 10, RECT)])
    path = write(tmp_path / "ann.json", value)
    assert coco(path, "--tars", tmp_path / "tars") == 0
    assert boxes_of(tmp_path / "p") == {"a.tar/1.png": [], "b.tar/2.png": [BOX]}
    write_tar(tmp_path / "tars" / "b.tar", {"1.png": one, "2.png": two})
    assert coco(path, "--tars", tmp_path / "tars") == 1
    error = capsys.readouterr().err
    assert "a.tar/1.png and b.tar/1.png are one image 1.png" in error.replace("'", "")
    # whole names tell them apart
    for image, name in zip(value["images"], ("a.tar/1.png", "b.tar/1.png"), strict=True):
        image["file_name"] = name
    value["images"].append({"id": 3, "file_name": "2.png", "height": 60, "width": 80})
    write(path, value)
    assert coco(path, "--tars", tmp_path / "tars") == 0
    assert boxes_of(tmp_path / "p")["b.tar/1.png"] == [BOX]


def test_merging_needs_the_parts_of_one_set(tmp_path: Path) -> None:
    def part(name: str, shard: str) -> Path:
        images = [ImageBoxes(f"{name}.jpg", (60, 80), np.array([BOX]))]
        settings = {"source": "random", **({"shard": shard} if shard else {})}
        write_proposals(tmp_path / name, images, settings)
        return tmp_path / name

    half, third, whole = part("half", "1/2"), part("third", "2/3"), part("whole", "")
    with pytest.raises(DatasetError, match="half is part 1/2, .*third is part 2/3"):
        merge_files([half, third], tmp_path / "all")
    with pytest.raises(DatasetError, match="half is part 1/2, .*whole is no part but whole"):
        merge_files([half, whole], tmp_path / "all")
    with pytest.raises(DatasetError, match="parts 1/3, 3/3 are missing: .*third is part 2/3"):
        merge_files([third], tmp_path / "all")
    assert not (tmp_path / "all").exists()
    assert merge_files([whole, part("other", "")], tmp_path / "all") == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--workers", "-1"),
        ("--sigma", "-1"),
        ("--sigma", "inf"),
        ("--seed", "-1"),
        ("--scale", "nan"),
        ("--scale", "0"),
        ("--min-size", "-5"),
        ("--min-size", str(2**31)),
        ("--most", "-1"),
    ],
)
def test_numbers_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    tree = pictures(tmp_path / "tree", "a.png")
    source = "random" if option == "--seed" else "authors"
    words = ("soco-proposals", "--images", tree, "--source", source, "--output", tmp_path / "p")
    assert run(*words, *ALONE, f"{option}={value}") == 1
    error = capsys.readouterr().err
    assert f"{option}: {value}" in error
    assert "Traceback" not in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree"]


def changed(what: str) -> dict[str, Any]:
    """A COCO file with one mistake."""
    value = content([(60, 80), (60, 80)], [box(n, 1, 10, RECT) for n in (41, 42)])
    first, last = value["images"], value["annotations"][-1]
    if what == "text":
        last["bbox"] = [5, 5, 60, "a"]
    elif what == "number as text":
        last["bbox"] = [5, 5, 60, "7"]
    elif what == "image_id":
        last["image_id"] = [1]
    elif what == "no object":
        value["annotations"][1] = "words"
    elif what == "no image object":
        first[1] = 5
    elif what == "two of one id":
        first[1]["id"] = 1
    elif what == "no name":
        del first[1]["file_name"]
    elif what == "no id":
        del first[1]["id"]
    return value


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("text", "annotation 42 has no image or no box of four numbers: its box [5, 5, 60, 'a']"),
        ("number as text", "annotation 42 has no image or no box of four numbers"),
        ("image_id", "its image_id [1]"),
        ("no object", "annotation number 1 (from 0) is 'words', not an object"),
        ("no image object", "image number 1 (from 0) is 5, not an object"),
        ("two of one id", "two images of the id 1: 1.png, 2.png"),
        ("no name", "image 2 has the file_name None"),
        ("no id", "image number 1 (from 0) has the id None"),
    ],
)
def test_coco_files_with_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, says: str
) -> None:
    tree = pictures(tmp_path / "tree", "1.png", "2.png")
    assert coco(write(tmp_path / "ann.json", changed(what)), "--images", tree) == 1
    error = capsys.readouterr().err
    assert says in error
    assert "ann.json" in error
    assert "Traceback" not in error
    assert not journal_of(tmp_path / "p").exists()


def test_coco_boxes_outside_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = pictures(tmp_path / "tree", "1.png", "2.png")
    rects = [RECT, [-10, 20, 50, 60], [80, 0, 40, 40], [-50, -50, 40, 40]]
    annotations = [box(n, 1, 10, rect) for n, rect in enumerate(rects)]
    path = write(tmp_path / "ann.json", content([(60, 80), (60, 80)], annotations))
    (tree / "2.png").write_bytes(b"no image")
    assert coco(path, "--images", tree) == 1
    Image.fromarray(scene(2)).save(tree / "2.png")
    assert coco(path, "--images", tree) == 0
    # images that were done before count as well
    text = capsys.readouterr().out
    assert "1 images were done before" in text
    assert "1 clipped, 2 dropped" in text
    assert boxes_of(tmp_path / "p")["1.png"] == [BOX, [0, 20, 39, 59]]


def test_clipping_leaves_boxes_inside_as_they_are() -> None:
    rects = np.array([[3.1, 4.7, 40.2, 35.3], [0.1, 0.2, 79.9, 59.8]])
    clipped, cut, dropped = clip_rects(rects, (60, 80))
    np.testing.assert_array_equal(clipped, rects)
    assert (cut, dropped) == (0, 0)
    clipped, cut, dropped = clip_rects(np.zeros((0, 4)), (60, 80))
    assert clipped.shape == (0, 4)
    assert (cut, dropped) == (0, 0)


def test_an_unfinished_run_keeps_what_it_has(tmp_path: Path) -> None:
    names = write_scenes(tmp_path / "tree", 3)
    words = ("soco-proposals", "--images", tmp_path / "tree", "--source", "random", *ALONE)
    (tmp_path / "tree" / names[0]).write_bytes(b"no image")
    assert run(*words, "--output", tmp_path / "p") == 1
    assert not journal_of(tmp_path / "p").exists()  # nothing was done
