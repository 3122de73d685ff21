"""The section on ``check`` of docs/prepare_data.md, command by command, and checks of proposals."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ext_common.data.box_file import ImageBoxes
from ext_common.data.dataset_registry import unregister
from ext_common.tar_list import write_tar_list
from soco_ext.proposals.proposal_file import write_proposals
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.ext_common.tar_files import jpeg, write_tar
from tools import prepare_data

PAGE = Path(__file__).parents[2] / "docs" / "prepare_data.md"
SIZES = [(8, 9), (10, 12), (9, 8), (12, 7)]
NAMES = ("street_train", "street_val")


def section() -> str:
    found = re.search(r"^## Checking a dataset\n(.*?)^## ", PAGE.read_text(), re.M | re.S)
    assert found
    return found.group(1)


def commands() -> list[list[str]]:
    (block,) = re.findall(r"^```\n(.*?)^```$", section(), re.M | re.S)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """All files that the section names."""
    good = content(SIZES, [box(n, n, 10 + n % 3, [1, 1, 4, 5]) for n in (1, 2, 3, 4)])
    write_images(tmp_path / "photos", good)
    for name in ("train", "val"):
        write(tmp_path / f"{name}.json", good)
    labels = content(SIZES)
    for image in labels["images"]:
        image["pos_category_ids"] = [11]
    write(tmp_path / "labels.json", labels)
    in_tar = content([(6, 8)] * 3, [box(n, n, 10, [1, 1, 4, 5]) for n in (1, 2, 3)])
    for place, image in enumerate(in_tar["images"]):
        del image["file_name"]
        image["tar_index"] = place
    write(tmp_path / "shards.json", in_tar)
    tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": jpeg(n) for n in range(3)})
    write_tar_list(tmp_path / "shards.npy", [tar], [3])
    pairs = {"1.jpg": jpeg(1), "1.txt": b"a cat", "2.jpg": jpeg(2), "2.txt": b"a dog"}
    write_tar(tmp_path / "pairs" / "p.tar", pairs)
    proposals = {image["file_name"]: [[0, 0, 5, 6]] for image in good["images"]}
    write(tmp_path / "proposals.json", proposals)
    bad = json.loads(json.dumps(good))
    bad["annotations"] += [box(5, 1, 10, [1, 1, 0, 2]), box(6, 2, 10, [1, 1, 30, 5])]
    bad["images"].append({"id": 5, "file_name": "5.png", "height": 8, "width": 8})
    write(tmp_path / "bad.json", bad)
    entries = {
        name: {"type": "lvis", "json": f"{name.split('_')[1]}.json", "images": "photos"}
        for name in NAMES
    }
    (tmp_path / "street.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    with contextlib.chdir(tmp_path):
        yield tmp_path
    for name in NAMES:
        with contextlib.suppress(KeyError):
            unregister(name)


def test_every_command_of_the_section_does_what_it_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *harmless, last = commands()
    assert len(harmless) == 6
    for interpreter, tool, *words in harmless:
        assert (interpreter, tool) == ("python", "tools/prepare_data.py")
        assert prepare_data.main(words) == 0, words
        assert "no problems" in capsys.readouterr().out
    assert prepare_data.main(last[2:]) == 1
    captured = capsys.readouterr()
    (shown,) = re.findall(r"^```text\n(.*?)^```$", section(), re.M | re.S)
    for line, expected in zip(captured.out.splitlines(), shown.splitlines(), strict=False):
        if expected.startswith("wrote"):  # a checksum depends on the file
            line = line.partition("; sha256")[0]
            expected = expected.partition("; sha256")[0]
        assert line.rstrip() == expected.rstrip()
    assert "image-empty" in captured.out
    assert "prepare_data: error: bad.json: 2 problems" in captured.err
    fixed = json.loads((folder / "good.json").read_text())
    assert [image["id"] for image in fixed["images"]] == [1, 2, 3, 4]
    boxes = {entry["id"]: entry["bbox"] for entry in fixed["annotations"]}
    assert list(boxes) == [1, 2, 3, 4, 6]
    assert boxes[6] == [1, 1, 11, 5]


def checked(folder: Path, name: str, *words: str) -> int:
    files = ["--proposals", str(folder / name), "--images", str(folder / "images")]
    return prepare_data.main(["check", *files, *words])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a/1.png", "b/1.x.png", "b/2.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / name)
    return tmp_path


def test_the_binary_file_of_proposals(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def saved(boxes: dict[str, list[Any]]) -> None:
        found = [ImageBoxes(n, (20, 30), np.array(rows)) for n, rows in boxes.items()]
        write_proposals(tmp_path / "p.bin", found, {})

    rows = [[0, 0, 29, 19], [3, 4, 12, 15]]
    saved({"a/1.png": rows, "b/1.x.png": rows, "b/2.png": rows})
    assert checked(images, "p.bin") == 0
    saved({"a/1.png": rows, "b/2.png": [[3, 4, 40, 15]], "other/2.png": rows})
    assert checked(images, "p.bin") == 1
    out = capsys.readouterr().out
    assert "b/1.x.png" in out
    assert "0 of b/2.png" in out
    assert "other/2.png" in out
    content = (tmp_path / "p.bin").read_bytes()
    (tmp_path / "p.bin").write_bytes(content[:-40])
    assert checked(images, "p.bin") == 1
    assert "p.bin" in capsys.readouterr().err


def test_the_json_files_of_the_authors(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "images" / "b" / "1.x.png").rename(images / "images" / "b" / "3.x.png")
    rects = [[0, 0, 30, 20], [25, 10, 5, 10]]
    write(tmp_path / "p.json", {"1": rects, "2": rects, "3": rects})
    assert checked(images, "p.json", "--published") == 0
    write(tmp_path / "p.json", {"1": rects, "2": [[25, 10, 9, 10], [1, 2]], "4": rects})
    assert checked(images, "p.json", "--published") == 1
    out = capsys.readouterr().out
    assert "0 of b/2.png" in out or "1 of b/2.png" in out
    assert "proposals-no-image" in out
    assert "b/3.x.png" in out
    (images / "images" / "b" / "3.x.png").rename(images / "images" / "b" / "1.x.png")
    write(tmp_path / "p.json", {"1": rects, "2": rects})
    assert checked(images, "p.json", "--published") == 1
    assert "1 (a/1.png or b/1.x.png)" in capsys.readouterr().out


def test_files_of_captions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = content(SIZES)
    texts = ["a cat", "🙂", "two dogs ", "an owl", "word " * 90]
    data["annotations"] = [
        {"id": n, "image_id": min(n, 4), "caption": text} for n, text in enumerate(texts, start=1)
    ]
    del data["categories"]
    write(folder / "captions.json", data)
    words = ["check", "--json", "captions.json", "--images", "photos", "--type", "captions"]
    assert prepare_data.main(words) == 0
    out = capsys.readouterr().out
    assert "captions.json: 4 images, 5 captions\n" in out
    assert "caption-cut" in out
    assert "image-empty" not in out
    data["annotations"] += [
        {"id": 6, "image_id": 1, "caption": ""},
        {"id": 7, "image_id": 1, "caption": 3},
        {"id": 8, "image_id": 9, "caption": "nobody"},
        {"id": 1, "image_id": 1, "caption": "again"},
    ]
    data["annotations"].pop(1)
    write(folder / "captions.json", data)
    assert prepare_data.main([*words, "--fix", "drop"]) == 1
    captured = capsys.readouterr()
    for key in ("caption-blank", "caption-missing", "annotation-no-image", "annotation-id-twice"):
        assert f"error    {key} " in captured.out
    assert "4 problems" in captured.err
    fixed = json.loads((folder / "captions_fixed.json").read_text())
    assert [entry["id"] for entry in fixed["annotations"]] == [1, 3, 4, 5]
    assert fixed["images"] == data["images"]
    words[2] = "captions_fixed.json"
    assert prepare_data.main(words) == 0
    assert "image-empty" in capsys.readouterr().out
    # without the option it is no file of boxes
    assert prepare_data.main(words[:5]) == 1
    assert "no list 'categories'" in capsys.readouterr().err


def test_image_text_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"good.jpg": jpeg(1), "good.txt": b"a cat", "cut.jpg": jpeg(2)[:-40], "cut.txt": b"a"}
    files |= {"no.jpg": b"text", "no.txt": b"b", "blank.jpg": jpeg(3), "blank.txt": b""}
    write_tar(tmp_path / "p.tar", files)
    words = ["check", "--pairs", "TarCaptions", str(tmp_path / "p.tar"), "--jobs", "2"]
    assert prepare_data.main(words) == 1
    out = capsys.readouterr().out
    assert "4 pairs\n" in out
    assert "p.tar:no.jpg" in out
    assert "cut.jpg" not in out
    assert prepare_data.main([*words, "--decode"]) == 1
    out = capsys.readouterr().out
    assert "pair-unreadable" in out
    assert "p.tar:cut.jpg" in out
    assert "good.jpg" not in out
    assert prepare_data.main(["check", "--pairs", "Tars", str(tmp_path)]) == 1
    assert "unknown kind of image-text data 'Tars'" in capsys.readouterr().err


def test_datasets_of_images_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos" / "3.png").write_bytes(b"text")
    entries = {
        "street_train": {"type": "image_folder", "images": "photos"},
        "street_val": {"type": "image_tars", "images": "pairs"},
    }
    (folder / "images.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    assert prepare_data.main(["check", *NAMES, "--registry", "images.yaml", "--decode"]) == 1
    captured = capsys.readouterr()
    assert "street_train: 4 images\n" in captured.out
    assert "2 (3.png: not an image in a known format" in captured.out
    assert "street_val: 2 images\n  no problems" in captured.out
    assert "street_train, street_val: 1 problems" in captured.err
    assert prepare_data.main(["check", "street_val", "--fix", "drop"]) == 1
    assert "only one annotation file can be repaired" in capsys.readouterr().err
