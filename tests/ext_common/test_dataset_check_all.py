"""``prepare_data.py check``: every problem of a dataset in one table, and repaired copies."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from ext_common.data import problem_kinds as kinds
from ext_common.data.checking.dataset_check import FileChecks, check_dataset, spec_of_file
from ext_common.data.checking.image_files import FolderImages, ImageToCheck, check_files
from ext_common.data.dataset_registry import unregister
from ext_common.data.lvis_json import LoadOptions, load_lvis_json
from ext_common.errors import DatasetError
from tests.ext_common.annotation_files import box, content, write, write_images
from tools import prepare_data

SIZES = [(8, 9), (10, 12), (9, 8), (12, 7)]


@pytest.fixture(autouse=True)
def _forget_new_datasets() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        unregister(name)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A good dataset: a.json, images."""
    found = content(SIZES, [box(n, n, 10 + n % 3, [1, 1, 4, 5]) for n in (1, 2, 3, 4)])
    write_images(tmp_path / "images", found)
    write(tmp_path / "a.json", found)
    return found


def found_kinds(folder: Path, kind: str = "coco", **more: Any) -> dict[str, int]:
    spec = spec_of_file(
        str(folder / "a.json"), str(folder / "images"), kind, allow_links=more.pop("links", False)
    )
    findings = check_dataset(spec, FileChecks(**more)).findings
    return {found.key: findings.counts[found] for found in findings.kinds()}


def check(*words: str | Path) -> int:
    return prepare_data.main(["check", *map(str, words), "--jobs", "1"])


def test_a_good_dataset_passes(data: Any, tmp_path: Path, capsys: Any) -> None:
    assert found_kinds(tmp_path) == found_kinds(tmp_path, decode=True) == {}
    assert check("--json", tmp_path / "a.json", "--images", tmp_path / "images", "--classes") == 0
    out = capsys.readouterr().out
    assert "4 images, 4 annotations, 0 image labels, 3 classes (category ids 10..12" in out
    assert "11 -> 1      dog" in out
    assert "no problems" in out


ImageChange = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["images"].append("x"), {"image-entry": 1}),
        (lambda d: d["images"][0].pop("id"), {"image-without-id": 1, "annotation-no-image": 1}),
        (lambda d: d["images"][0].update(id="1"), {"image-ids-mixed": 1, "annotation-no-image": 1}),
        (lambda d: d["images"][0].update(id=2), {"image-id-twice": 1, "annotation-no-image": 1}),
        (lambda d: d["images"][0].update(height=0.5), {"image-without-size": 1}),
        (lambda d: d["images"][0].pop("file_name"), {"image-without-name": 1}),
        (lambda d: d["images"][0].update(file_name="../1.png"), {"name-leaves-root": 1}),
        (lambda d: d["images"][0].update(file_name="none.png"), {"file-missing": 1}),
        (lambda d: d["images"][0].update(width=10), {"file-size": 1}),
        (lambda d: d["images"][1].update(file_name="1.png"), {"name-twice": 1, "file-size": 1}),
        (lambda d: d["images"][0].update(pos_category_ids=[7, 10]), {"label-unknown": 1}),
        (lambda d: d["images"][0].update(neg_category_ids=[7]), {"label-unknown": 1}),
        (lambda d: d["images"][0].update(pos_category_ids=[10, 10]), {"label-twice": 1}),
        (lambda d: d["images"][0].update(pos_category_ids=["10"]), {"label-type": 1}),
        (lambda d: d["images"][0].update(captions="a"), {"caption-type": 1}),
        (lambda d: d["images"][0].update(captions=["a", ""]), {"caption-empty": 1}),
        (lambda d: d["images"][0].update(captions=["a " * 90]), {"caption-long": 1}),
        (lambda d: d["annotations"].append(None), {"annotation-entry": 1}),
        (lambda d: d["annotations"][0].update(id=2), {"annotation-id-twice": 1}),
        (lambda d: d["annotations"][0].update(image_id=9), {"annotation-no-image": 1}),
        (lambda d: d["annotations"][0].update(category_id=9), {"category-unknown": 1}),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), {"box-type": 1}),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, "3", 4]), {"box-type": 1}),
        (
            lambda d: d["annotations"][0].update(bbox=[1, 2, math.nan, 4]),
            {"box-not-finite": 1, "no-number": 1},
        ),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, -3, 4]), {"box-empty": 1}),
        (lambda d: d["annotations"][0].update(bbox=[9, 2, 3, 4]), {"box-outside": 1}),
        (lambda d: d["annotations"][0].update(bbox=[5, 2, 9, 4]), {"box-over-edge": 1}),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3]]), {"polygon-type": 1}),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), {"polygon-short": 1}),
    ],
)
def test_every_problem_has_its_kind_and_the_loader_says_the_same(
    data: Any, tmp_path: Path, change: ImageChange, expected: dict[str, int]
) -> None:
    change(data)
    write(tmp_path / "a.json", data)
    found = found_kinds(tmp_path)
    without_own_annotation = {"image-empty"} if "annotation" in str(expected) else set()
    assert {k: n for k, n in found.items() if k not in without_own_annotation} == expected
    by_key = {kind.key: kind for kind in kinds.KINDS}
    errors = [by_key[key] for key in found if by_key[key].severity == "error"]
    seen_by_loader = [kind for kind in errors if not kind.key.startswith(("file-", "no-number"))]
    if not seen_by_loader:
        if "no-number" not in found:
            assert load_lvis_json(tmp_path / "a.json", str(tmp_path / "images"))
        return
    with pytest.raises(DatasetError) as caught:
        load_lvis_json(tmp_path / "a.json", str(tmp_path / "images"))
    if "no-number" not in found:
        assert any(kind.what in str(caught.value) for kind in seen_by_loader)


def test_image_labels_are_required_where_there_is_nothing_else(data: Any, tmp_path: Path) -> None:
    data["annotations"].clear()
    for image in data["images"][:3]:
        image["pos_category_ids"] = [10]
    write(tmp_path / "a.json", data)
    assert found_kinds(tmp_path) == {"image-empty": 1}
    assert found_kinds(tmp_path, "image_labels") == {"label-missing": 1, "image-empty": 1}


def test_bad_files_are_found_by_listing_headers_or_decoding(data: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "1.png").unlink()
    (images / "2.png").write_bytes(b"")
    Image.open(images / "3.png").save(tmp_path / "3.jpg", quality=100)
    (images / "3.png").write_bytes((tmp_path / "3.jpg").read_bytes()[:-40])
    (images / "4.png").unlink()
    (images / "4.png").symlink_to(images / "nowhere.png")
    assert found_kinds(tmp_path, sizes=False) == {"file-missing": 2}
    assert found_kinds(tmp_path) == {"file-missing": 2, "file-unreadable": 1}
    assert found_kinds(tmp_path, decode=True) == {"file-missing": 2, "file-unreadable": 2}
    assert found_kinds(tmp_path, max_pixels=10) == {"file-missing": 2, "file-unreadable": 2}


def test_links_out_of_the_folder_are_problems(data: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "1.png").rename(tmp_path / "1.png")
    (images / "1.png").symlink_to(tmp_path / "1.png")
    (images / "2.png").rename(images / "other.png")
    (images / "2.png").symlink_to(images / "other.png")
    assert found_kinds(tmp_path) == {"link-leaves-root": 1}
    assert found_kinds(tmp_path, links=True) == {}


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_share_the_work(tmp_path: Path, processes: int) -> None:
    pixels = Image.new("RGB", (5, 4))
    images = []
    for number in range(300):
        pixels.save(tmp_path / f"{number}.png")
        height = 4 if number % 50 else 6
        images.append(ImageToCheck(number, number, f"{number}.png", height, 5))
    told: list[tuple[int, int]] = []
    found = check_files(
        images,
        FolderImages(str(tmp_path)),
        decode=True,
        processes=processes,
        progress=lambda *at: told.append(at),
    )
    problems = list(found)
    assert sorted(problem.place for problem in problems) == [0, 50, 100, 150, 200, 250]
    assert problems[0].text == "0 (0.png: 5 x 4, recorded 5 x 6)"
    assert told[-1] == (300, 300)


def test_images_in_archives(data: Any, tmp_path: Path, capsys: Any) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for number in (1, 2, 3):
            tar.add(tmp_path / "images" / f"{number}.png", f"{number}.png")
    for place, image in enumerate(data["images"]):
        del image["file_name"]
        image["tar_index"] = place
    data["images"][1]["width"] += 1
    write(tmp_path / "a.json", data)
    assert check("--json", tmp_path / "a.json", "--tars", tmp_path) == 1
    out = capsys.readouterr().out
    assert "4 (file 3 of 3)" in out
    assert "2 (part.tar: 2.png: 12 x 10, recorded 13 x 10)" in out


def test_registered_datasets_and_the_order_of_their_classes(
    data: Any, tmp_path: Path, capsys: Any
) -> None:
    moved = content(SIZES[:1], classes=("dog", "cat", "owl"))
    write(tmp_path / "b.json", moved)
    write(tmp_path / "c.json", content(SIZES[:1], classes=("cat", "dog")))
    entries = {
        f"all_{name}": {"type": "lvis", "json": f"{name}.json", "images": "images"}
        for name in "abc"
    }
    registry = tmp_path / "sets.yaml"
    registry.write_text(yaml.safe_dump({"datasets": entries}))
    assert check("all_a", "all_b", "all_c", "--registry", registry) == 1
    captured = capsys.readouterr()
    assert "dataset 'all_b': class 0 is 'dog' here and 'cat' in 'all_a'" in captured.out
    assert "all_c: 2 classes, all_a: 3" in captured.out
    assert captured.err.splitlines()[-1].startswith(
        "prepare_data: error: all_a, all_b, all_c: 1 problems"
    )
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert check("--json", a, "--val", b, "--images", tmp_path / "images") == 1
    assert "class-order" in capsys.readouterr().out
    assert check("all_x") == 1
    assert "unknown dataset 'all_x'" in capsys.readouterr().err


def test_class_folders_are_checked_through_their_index(tmp_path: Path, capsys: Any) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        Image.new("RGB", (6, 5)).save(tmp_path / "tree" / name / "1.png")
    registry = tmp_path / "sets.yaml"
    registry.write_text("datasets: {all_tree: {type: class_folders, images: tree}}")
    assert check("all_tree", "--registry", registry, "--decode") == 0
    assert "2 images, 0 annotations, 2 image labels, 2 classes" in capsys.readouterr().out
    assert check("all_tree", "--fix", "drop") == 1
    assert "only one annotation file" in capsys.readouterr().err


def test_wrong_usage_is_told(tmp_path: Path, capsys: Any) -> None:
    assert check() == 1
    assert "nothing to check (give names" in capsys.readouterr().err
    assert check("--json", tmp_path / "none.json") == 1
    assert "missing: " in capsys.readouterr().err
    (tmp_path / "a.json").write_text('{"images": [\n  1,\n')
    assert check("--json", tmp_path / "a.json") == 1
    assert "the file looks cut off at line 3" in capsys.readouterr().err


def _bad_dataset(tmp_path: Path, data: Any) -> None:
    """Every kind of repairable problem."""
    data["info"] = {"year": 2026}
    data["licenses"] = []
    images, annotations = data["images"], data["annotations"]
    (tmp_path / "images" / "4.png").write_text("no image")
    images[0].update(pos_category_ids=[7, 10, 10], neg_category_ids=[7, 11], captions=["a", ""])
    images.append({**images[0], "id": 2})
    images += [{**images[0], "id": 20 + n} for n in range(3)]
    images[-3].pop("file_name")
    images[-2]["width"] = None
    images[-1]["file_name"] = "../1.png"
    annotations += [
        box(11, 1, 10, [math.nan, 1, 2, 2]),
        box(12, 1, 10, [1, 1, 0, 2]),
        box(13, 1, 10, [30, 1, 2, 2]),
        box(14, 1, 10, [7, 6, 20, 20]),
        box(15, 1, 10, [1, 1, 2, 2]) | {"segmentation": [[1, 2, 3]]},
        box(16, 1, 10, [1, 1, 2, 2]) | {"area": math.inf},
        box(16, 2, 10, [1, 1, 2, 2]),
        box(17, 99, 10, [1, 1, 2, 2]),
        box(18, 2, 99, [1, 1, 2, 2]),
        box(19, 2, 10, [1, 1, 2, 2]) | {"iscrowd": 1},
        box(20, 23, 10, [1, 1, 2, 2]),
    ]
    write(tmp_path / "a.json", data)


@pytest.mark.parametrize("fix", ["drop", "clip"])
def test_a_repaired_copy_has_what_was_good(
    data: Any, tmp_path: Path, capsys: Any, fix: str
) -> None:
    _bad_dataset(tmp_path, data)
    arguments = ("--json", tmp_path / "a.json", "--images", tmp_path / "images")
    before = (tmp_path / "a.json").read_bytes()
    assert check(*arguments, "--fix", fix) == 1  # the dataset as it is cannot be used
    out = capsys.readouterr().out
    fixed = json.loads((tmp_path / "a_fixed.json").read_text())
    assert (tmp_path / "a.json").read_bytes() == before
    assert {key: fixed[key] for key in ("info", "licenses", "categories")} == {
        "info": {"year": 2026},
        "licenses": [],
        "categories": data["categories"],
    }
    assert list(fixed) == list(data)
    assert [image["id"] for image in fixed["images"]] == [1, 2, 3]
    assert fixed["images"][0]["pos_category_ids"] == [10]
    assert fixed["images"][0]["neg_category_ids"] == [11]
    assert fixed["images"][0]["captions"] == ["a"]
    assert fixed["images"][1:] == data["images"][1:3]
    kept = {entry["id"]: entry for entry in fixed["annotations"]}
    assert list(kept) == [1, 2, 3, 14, 19]
    assert kept[1] == data["annotations"][0]
    assert kept[14]["bbox"] == ([7, 6, 2, 2] if fix == "clip" else [7, 6, 20, 20])
    assert "5 images left out" in out
    assert "10 annotations left out" in out
    assert ("1 boxes cut" in out) == (fix == "clip")
    target = tmp_path / "fixed.json"
    target.write_text(json.dumps(fixed))
    assert check("--json", target, "--images", tmp_path / "images") == 0
    records = load_lvis_json(target, str(tmp_path / "images"), LoadOptions())
    assert len(records) == 3


def test_what_is_good_is_copied_byte_for_byte(data: Any, tmp_path: Path) -> None:
    data["annotations"][0]["bbox"] = [1.0, 1e0, 0.30000000000000004, 4]
    data["images"][0]["note"] = "Grüße"
    text = json.dumps(data, ensure_ascii=False, indent=1).replace("1.0,", "1.00,")
    (tmp_path / "a.json").write_text(text)
    arguments = ("--json", tmp_path / "a.json", "--images", tmp_path / "images")
    target = tmp_path / "sub.json"
    assert check(*arguments, "--fix", "clip", "--output", target) == 0
    assert json.loads(target.read_text()) == data
    assert "1.00," in target.read_text()
    assert check(*arguments, "--fix", "clip", "--output", tmp_path / "a.json") == 1


def test_what_cannot_be_repaired_is_said(data: Any, tmp_path: Path, capsys: Any) -> None:
    data["images"][0]["id"] = "1"
    write(tmp_path / "a.json", data)
    assert check("--json", tmp_path / "a.json", "--fix", "drop") == 1
    assert "a_fixed.json cannot be repaired: 1 image ids are partly" in capsys.readouterr().err
