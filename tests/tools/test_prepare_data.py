"""tools/prepare_data.py: commands on small trees of the real form, and how they fail."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detic_ext.data  # noqa: F401 - registers the published names
from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from ext_common.data.lvis_json import load_lvis_json
from tests.ext_common.annotation_files import box, content, write, write_images
from tests.ext_common.tar_files import jpeg
from tests.tools.prepare_runs import LVIS_ID, TOOL, coco_file, lvis_file, read, run
from tools.prepare.files import output_path, registered_images, registered_json
from tools.prepare_data import COMMANDS, load_command


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    modules = {p.stem.replace("_", "-") for p in (TOOL.parent / "prepare").glob("*.py")}
    assert set(COMMANDS) <= modules
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(name, "--help")
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert re.search(rf"python tools/prepare_data\.py {name} (--|\\)", text)
        assert callable(load_command(name).run)
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    for words in ([], ["lvis-bass"], ["cat-info"]):
        with pytest.raises(SystemExit) as stop:
            run(*words)
        assert stop.value.code == 2


@pytest.mark.parametrize(
    ("source", "suffix", "dataset"),
    [
        ("lvis/lvis_v1_train.json", "_norare", "lvis_v1_train_norare"),
        ("lvis/lvis_v1_train.json", "+coco_mask", "lvis_v1_train+coco"),
        ("lvis/lvis_v1_train.json", "_lvis-22k", "lvis_v1_train_22k"),
        (
            "imagenet/annotations/imagenet-22k_image_info.json",
            "_lvis-22k",
            "imagenet_lvis-22k",
        ),
        ("cc3m/train_image_info.json", "_tags", "cc3m_v1_train_tags"),
        (
            "coco/annotations/captions_train2017.json",
            "_tags_allcaps",
            "coco_caption_train_tags",
        ),
        (
            "coco/zero-shot/instances_train2017_seen_2.json",
            "_oriorder",
            "coco_zeroshot_train_oriorder",
        ),
        (
            "coco/zero-shot/instances_val2017_all_2.json",
            "_oriorder",
            "coco_generalized_zeroshot_val",
        ),
        ("objects365/annotations/zhiyuan_objv2_val.json", "_fixname", "objects365_v2_val"),
        (
            "objects365/annotations/zhiyuan_objv2_train_fixname.json",
            "_fixmiss",
            "objects365_v2_train",
        ),
    ],
)
def test_outputs_are_where_the_registry_reads(source: str, suffix: str, dataset: str) -> None:
    root = registered_json("lvis_v1_train").parents[1]

    assert output_path(None, root / source, suffix) == registered_json(dataset)


def test_lvis_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lvis_file(tmp_path / "lvis_v1_train.json")

    assert run("lvis-base", "--ann", source) == 0

    output = tmp_path / "lvis_v1_train_norare.json"
    assert [entry["id"] for entry in read(output)["annotations"]] == [1, 2]
    line = capsys.readouterr().out.splitlines()[-1]
    assert "1 images, 2 annotations, 1,203 categories" in line
    assert hashlib.sha256(output.read_bytes()).hexdigest() in line
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, output.name]


def test_lvis_coco(tmp_path: Path) -> None:
    lvis = lvis_file(tmp_path / "lvis_v1_train.json")
    coco = coco_file(tmp_path / "instances.json", [(7, 1), (7, 17), (3, 1)])

    assert run("lvis-coco", "--lvis", lvis, "--coco", coco) == 0

    merged = read(tmp_path / "lvis_v1_train+coco_mask.json")
    assert [entry["category_id"] for entry in merged["annotations"]][3:] == [
        LVIS_ID["person.n.01"],
        LVIS_ID["cat.n.01"],
    ]
    records = load_lvis_json(tmp_path / "lvis_v1_train+coco_mask.json", "images")
    assert len(records[0]["annotations"]) == 5


def test_cat_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = content([(9, 9), (9, 9)], [box(1, 1, 10, [0, 0, 2, 2]), box(2, 2, 10, [0, 0, 2, 2])])
    source = write(tmp_path / "a.json", data)

    assert run("cat-info", "--ann", source) == 0
    plain = read(tmp_path / "a_cat_info.json")
    assert [c["image_count"] for c in plain] == [2, 0, 0]
    assert "3 categories, 2 without images" in capsys.readouterr().out

    output = tmp_path / "b.json"
    words = ["--add-freq", "--r-thresh", "1", "--c-thresh", "2", "--output", output]
    assert run("cat-info", "--ann", source, *words) == 0
    assert [c["frequency"] for c in read(output)] == ["f", "r", "r"]


def cc3m_tree(tmp_path: Path) -> Path:
    tsv = tmp_path / "Train_GCC-training.tsv"
    tsv.write_text("a dog on a bed\thttp://host/1\nnothing\thttp://host/2\na cat\thttp://host/3\n")
    return tsv


def test_cc3m_list_and_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tsv = cc3m_tree(tmp_path)
    folder, output = tmp_path / "training", tmp_path / "train_image_info.json"
    words = ["cc3m-list", "--ann", tsv, "--images", folder, "--output", output]

    assert run(*words) == 0
    assert not output.exists()
    urls = tmp_path / "train_image_info.urls.txt"
    assert urls.read_text().split() == [
        "http://host/1", "out=1.jpg", "http://host/2", "out=2.jpg", "http://host/3", "out=3.jpg",
    ]  # fmt: skip

    folder.mkdir()
    (folder / "1.jpg").write_bytes(jpeg(size=(6, 8)))
    (folder / "2.jpg").write_bytes(jpeg(size=(6, 8)))
    (folder / "3.jpg").write_text("<html>")
    assert run(*words) == 0
    assert urls.read_text() == ""
    assert "1 files are no images and left out: 3.jpg" in capsys.readouterr().out
    assert [image["captions"] for image in read(output)["images"]] == [
        ["a dog on a bed"],
        ["nothing"],
    ]
    assert not list(tmp_path.glob("*.part"))

    assert run("cc-tags", "--ann", output) == 0
    tagged = read(tmp_path / "train_image_info_tags.json")
    assert [image["pos_category_ids"] for image in tagged["images"]] == [
        sorted([LVIS_ID["dog.n.01"], LVIS_ID["bed.n.01"]])
    ]
    assert tagged["categories"] == lvis_categories()

    words = ["--coco", "--keep-images", "--output", tmp_path / "coco_tags.json"]
    assert run("cc-tags", "--ann", output, *words) == 0
    tagged = read(tmp_path / "coco_tags.json")
    assert [image["pos_category_ids"] for image in tagged["images"]] == [[18, 65], []]
    assert len(load_lvis_json(tmp_path / "coco_tags.json", str(folder))) == 2


def test_coco_caption_tags(tmp_path: Path) -> None:
    captions = {
        "images": [{"id": n, "height": 9, "width": 9, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 2, "caption": "someone"},
            {"id": 2, "image_id": 2, "caption": "with a purse"},
            {"id": 3, "image_id": 1, "caption": "nothing"},
        ],
    }
    source = write(tmp_path / "captions_train2017.json", captions)

    assert run("coco-caption-tags", "--ann", source) == 0
    found = read(tmp_path / "captions_train2017_tags_allcaps.json")
    assert [(image["id"], image["pos_category_ids"]) for image in found["images"]] == [(2, [31])]
    assert found["categories"] == coco_categories()

    assert run("coco-caption-tags", "--ann", source, "--keep-images") == 0
    full = read(tmp_path / "captions_train2017_tags_allcaps_full.json")
    assert [image["pos_category_ids"] for image in full["images"]] == [[], [31]]


def test_ovcoco_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = coco_file(tmp_path / "instances_train2017.json", [(1, 1), (2, 17), (3, 10), (1, 17)])
    val = coco_file(tmp_path / "instances_val2017.json", [(1, 1), (2, 17), (3, 10)])
    folder = tmp_path / "zero-shot"

    assert run("ovcoco-split", "--train", train, "--val", val, "--output", folder) == 0

    found = {p.stem: read(p) for p in folder.iterdir()}
    images = {
        name: [image["id"] for image in data["images"]]
        for name, data in found.items()
        if isinstance(data, dict)
    }
    assert images == {
        "instances_train2017_seen_2": [1],
        "instances_train2017_seen_2_oriorder": [1],
        "instances_val2017_seen_2": [1],
        "instances_val2017_unseen_2": [2],
        "instances_val2017_all_2": [1, 2],
        "instances_val2017_all_2_oriorder": [1, 2],
    }
    sizes = {name: len(found[name]["categories"]) for name in images}
    assert sizes["instances_train2017_seen_2"] == len(BASE_IDS) == 48
    assert sizes["instances_val2017_unseen_2"] == len(NOVEL_IDS) == 17
    assert sizes["instances_val2017_all_2"] == 65
    assert sizes["instances_val2017_all_2_oriorder"] == 80
    counts = found["instances_train2017_seen_2_oriorder_cat_info"]
    assert {c["id"]: c["image_count"] for c in counts if c["image_count"]} == {1: 1}
    assert len(counts) == 80
    assert capsys.readouterr().out.count("sha256") == 7


def test_ovcoco_oriorder(tmp_path: Path) -> None:
    value = {
        "images": [{"id": 1, "height": 9, "width": 9, "file_name": "1.jpg"}],
        "annotations": [box(1, 1, 17, [0, 0, 2, 2])],
        "categories": [{"id": 17, "name": "cat"}],
    }
    source = write(tmp_path / "a.json", value)

    assert run("ovcoco-oriorder", "--ann", source) == 0
    assert read(tmp_path / "a_oriorder.json") == {**value, "categories": coco_categories()}

    original = coco_file(tmp_path / "instances.json", [])
    words = ["--categories", original, "--output", tmp_path / "b.json"]
    assert run("ovcoco-oriorder", "--ann", source, *words) == 0
    assert read(tmp_path / "b.json")["categories"] == read(original)["categories"]


def test_objects365(tmp_path: Path) -> None:
    value = {
        "images": [
            {"id": n, "height": 9, "width": 9, "file_name": f"images/v1/patch0/{n}.jpg"}
            for n in (1, 2)
        ],
        "annotations": [box(n, n, 38, [0, 0, 2, 2]) for n in (1, 2)],
        "categories": [{"id": n, "name": f"name {n}"} for n in range(1, 366)],
    }
    source = write(tmp_path / "zhiyuan_objv2_train.json", value)
    (tmp_path / "train" / "patch0").mkdir(parents=True)
    (tmp_path / "train" / "patch0" / "2.jpg").touch()

    assert run("o365-names", "--ann", source) == 0
    fixed = tmp_path / "zhiyuan_objv2_train_fixname.json"
    assert read(fixed)["categories"][37] == {"id": 38, "name": "Monitor/TV"}

    assert run("o365-missing", "--ann", fixed, "--images", tmp_path / "train") == 0
    found = read(tmp_path / "zhiyuan_objv2_train_fixname_fixmiss.json")
    assert [image["file_name"] for image in found["images"]] == ["patch0/2.jpg"]
    assert [entry["id"] for entry in found["annotations"]] == [2]

    (tmp_path / "names.csv").write_text("1,name 1,One\n")
    words = ["--names", tmp_path / "names.csv", "--output", tmp_path / "b.json"]
    assert run("o365-names", "--ann", source, *words) == 0
    assert read(tmp_path / "b.json")["categories"][0]["name"] == "One"


def test_folders(tmp_path: Path) -> None:
    data = content([(9, 8), (7, 6)], classes=("cat", "dog"))
    for image, name in zip(data["images"], ("cat/1.png", "hound/2.png"), strict=True):
        image["file_name"] = name
    write_images(tmp_path / "photos", data)
    output = tmp_path / "photos.json"

    assert run("folders", "--images", tmp_path / "photos", "--output", output) == 0
    assert [c["name"] for c in read(output)["categories"]] == ["cat", "hound"]

    classes = write(tmp_path / "boxes.json", data)
    words = [
        "folders",
        "--images",
        tmp_path / "photos",
        "--output",
        output,
        "--categories",
        classes,
    ]
    assert run(*words) == 1
    assert run(*words, "--unknown-folders", "skip") == 0
    assert [i["file_name"] for i in read(output)["images"]] == ["cat/1.png"]
    (tmp_path / "map.txt").write_text("hound dog\n")
    assert run(*words, "--map", tmp_path / "map.txt") == 0
    assert [i["pos_category_ids"] for i in read(output)["images"]] == [[10], [11]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lvis-base", "--ann", "none.json"], r"none.json: annotations cannot be read"),
        (["lvis-base", "--ann", "bad.json"], r"bad.json: .* at line 1, column \d+"),
        (["lvis-base", "--ann", "list.json"], "the top level is a list"),
        (["lvis-base", "--ann", "ok.json"], "categories without 'frequency'"),
        (["cat-info", "--ann", "ok.json", "--output", "ok.json"], "the output is the input"),
        (["cat-info", "--ann", "ok.json", "--output", "bad.json/a.json"], "bad.json"),
        (["cat-info", "--ann", "broken.json"], r"1 labels that are not in 'categories'.*: 99|99"),
        (["ovcoco-oriorder", "--ann", "ok.json"], "not in the full list under that id: 10"),
        (["cc-tags", "--ann", "ok.json"], "has no list of captions"),
        (["folders", "--images", "none", "--output", "a.json"], "none: no such folder"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = content([(9, 9)])
    write(tmp_path / "ok.json", good)
    write(tmp_path / "list.json", [])
    write(tmp_path / "broken.json", {**good, "annotations": [box(1, 1, 99, [0, 0, 1, 1])]})
    (tmp_path / "bad.json").write_text('{"images": [')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    assert run(*words) == 1

    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("prepare_data: error: ")
    assert re.search(message, last), last
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_defaults_below_the_datasets_folder(tmp_path: Path) -> None:
    lvis_file(tmp_path / "lvis" / "lvis_v1_train.json")

    done = subprocess.run(
        [sys.executable, str(TOOL), "lvis-base"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "lvis" / "lvis_v1_train_norare.json")["annotations"]) == 2


def test_registered_image_folders() -> None:
    assert registered_images("cc3m_v1_train").parts[-2:] == ("cc3m", "training")
