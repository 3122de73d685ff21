"""tools/demo.py: what it writes, and that every failure ends in one useful line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from pycocotools.coco import COCO

from ext_common.config import get_config
from ext_common.results import read_coco
from tests.ext_common.tiny_detectors import (
    CLASSES,
    COLORS,
    color_config,
    save_random_weights,
    tiny_config,
)
from tools import demo

ROOT = Path(__file__).resolve().parents[2]


def save_color(
    path: Path, name: str, size: tuple[int, int] = (30, 20), turned: bool = False
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turned:
        exif[274] = 6
    Image.new("RGB", size, COLORS[name]).save(path, exif=exif)
    return path


def write_config(cfg: CfgNode, folder: Path) -> Path:
    """What differs from the defaults, as a user would write it."""
    path = folder / "config.yaml"
    path.write_text(_difference(cfg, get_config()).dump(), encoding="utf-8")
    return path


def _difference(cfg: CfgNode, defaults: CfgNode) -> CfgNode:
    kept = type(cfg)()
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            child = _difference(value, defaults[key])
            if child:
                kept[key] = child
        elif value != defaults[key]:
            kept[key] = list(value) if isinstance(value, tuple) else value
    return kept


@dataclass
class Run:
    """The demo with the detector of colours; every call is one run."""

    config: Path
    output: Path
    capture: pytest.CaptureFixture[str]
    out: str = ""
    err: str = field(default="", repr=False)

    def __call__(self, *inputs: Path | str, options: tuple[str, ...] = (), opts: str = "") -> int:
        command = ["--config-file", str(self.config), "--output", str(self.output)]
        command += ["--input", *map(str, inputs), *options]
        if opts:
            command += ["--opts", *opts.split()]
        code = demo.main(command)
        self.out, self.err = self.capture.readouterr()
        return code

    def error(self) -> str:
        """The last line, having checked that it is the only error and no traceback came along."""
        lines = self.err.strip().splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("error: ")

    def names(self) -> dict[str, list[str]]:
        """File name -> class names found, from the COCO file."""
        results = read_coco(self.output / "detections.json")
        return {Path(result.file_name).name: list(result.names) for result in results}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    cfg = color_config()
    cfg.DATASETS.TEST = ()
    save_random_weights(cfg, tmp_path)
    return Run(write_config(cfg, tmp_path), tmp_path / "found", capsys)


def test_folder(tmp_path: Path, run: Run) -> None:
    photos = tmp_path / "photos"
    save_color(photos / "a red.jpg", "red")
    save_color(photos / "b.PNG", "green", (60, 20))
    save_color(photos / "c.jpg", "red", (30, 20), turned=True)
    (photos / "cut.jpg").write_bytes((photos / "c.jpg").read_bytes()[:300])
    (photos / "notes.txt").write_text("no picture")
    save_color(photos / "below" / "d.jpg", "red")

    options = ("--format", "image,coco,csv", "--batch-size", "2")
    assert run(photos, options=options) == 0
    assert "3 pictures, 3 detections, 1 corrupt files skipped" in run.out
    assert "cut.jpg" in run.err

    written = {path.name for path in run.output.iterdir()}
    drawn = {"a red.jpg", "b.jpg", "c.jpg"}
    assert written == drawn | {"contact_sheet.jpg", "detections.json", "detections.csv"}
    assert run.names() == {"a red.jpg": ["red"], "b.PNG": ["green"], "c.jpg": ["red"]}
    assert list(run.names()) == ["a red.jpg", "b.PNG", "c.jpg"]

    coco = COCO(str(run.output / "detections.json"))
    turned = coco.imgs[3]
    assert (turned["height"], turned["width"]) == (30, 20)
    with open(run.output / "detections.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class_name"] for row in rows] == ["red", "green", "red"]
    with Image.open(run.output / "b.jpg") as picture:
        assert picture.size == (240, 80)
        # something is drawn over the plain green
        assert np.abs(np.asarray(picture, dtype=int) - COLORS["green"]).max() > 60


def test_single_picture_gets_no_contact_sheet(tmp_path: Path, run: Run) -> None:
    assert run(save_color(tmp_path / "one.jpg", "red"), options=("--format", "image")) == 0
    assert [path.name for path in run.output.iterdir()] == ["one.jpg"]


def test_vocabulary_of_the_command_line(tmp_path: Path, run: Run) -> None:
    picture = save_color(tmp_path / "blue.jpg", "blue")
    assert run(picture, options=("--vocabulary", 'red brick, "blue, bright", green')) == 0
    assert run.names() == {"blue.jpg": ["blue, bright"]}
    content = json.loads((run.output / "detections.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["red brick", "blue, bright", "green"]

    (tmp_path / "names.txt").write_text("blue sky\nred\n", encoding="utf-8")
    assert run(picture, options=("--vocabulary", str(tmp_path / "names.txt"))) == 0
    assert run.names() == {"blue.jpg": ["blue sky"]}


def test_threshold_and_empty_result(tmp_path: Path, run: Run) -> None:
    picture = save_color(tmp_path / "blue.jpg", "blue")
    assert run(picture, options=("--confidence-threshold", "0.9", "--format", "coco,csv")) == 0
    assert "1 pictures, 0 detections" in run.out
    content = json.loads((run.output / "detections.json").read_text())
    assert (len(content["images"]), content["annotations"]) == (1, [])
    assert [c["name"] for c in content["categories"]] == ["green", "red"]
    assert len((run.output / "detections.csv").read_text().splitlines()) == 1


def test_patterns_and_repeated_inputs(tmp_path: Path, run: Run) -> None:
    for place, color in (("x/1.jpg", "red"), ("y/1.jpg", "green"), ("y/2.png", "red")):
        save_color(tmp_path / place, color)
    (tmp_path / "y" / "list.txt").write_text("")
    assert run(tmp_path / "**" / "*", tmp_path / "x" / "1.jpg") == 0
    results = read_coco(run.output / "detections.json")
    assert [Path(r.file_name).parent.name for r in results] == ["x", "y", "y"]
    assert [r.names for r in results] == [("red",), ("green",), ("red",)]
    drawn = {path.name for path in run.output.glob("*.jpg")}
    assert drawn == {"1.jpg", "1_2.jpg", "2.jpg", "contact_sheet.jpg"}


def test_unusual_names(tmp_path: Path, run: Run) -> None:
    names = ["höhe 東京.jpg", "new\nline.jpg", "contact_sheet.png", "x" * 240 + ".jpg", "[1].png"]
    pictures = [save_color(tmp_path / "in" / name, "red") for name in names]
    assert run(*pictures) == 0
    assert len(list(run.output.glob("*.jpg"))) == 6
    assert len(run.out.splitlines()) == 1
    assert sorted(run.names()) == sorted(names)


# ---- failures


def test_missing_file(tmp_path: Path, run: Run) -> None:
    assert run(tmp_path / "gone.jpg") == 1
    assert "gone.jpg: no such file" in run.error()


@pytest.mark.parametrize("content", [b"", b"plain text", b"\xff\xd8\xff\xe0 cut"])
def test_named_corrupt_picture(tmp_path: Path, run: Run, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    assert run(save_color(tmp_path / "good.jpg", "red"), tmp_path / "bad.jpg") == 1
    assert run.error().startswith(f"{tmp_path / 'bad.jpg'}: ")


def test_named_truncated_picture(tmp_path: Path, run: Run) -> None:
    path = save_color(tmp_path / "cut.jpg", "red", (300, 200))
    path.write_bytes(path.read_bytes()[:1000])
    assert run(path) == 1
    assert "cut.jpg: corrupt image" in run.error()


def test_nothing_readable_in_a_folder(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in") == 1
    assert "in: no image matches" in run.error()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    (tmp_path / "in" / "b.jpg").write_bytes(b"x")
    assert run(tmp_path / "in") == 1
    assert "none of the 2 pictures can be read" in run.error()
    assert "a.jpg: the file is empty" in run.error()
    assert run(tmp_path / "*.webp") == 1
    assert "*.webp: no image matches" in run.error()


def test_output_that_is_a_file(tmp_path: Path, run: Run) -> None:
    run.output.write_text("mine")
    assert run(save_color(tmp_path / "a.jpg", "red")) == 1
    assert run.error() == f"{run.output}: the output is a file (name a folder)"
    run.output = run.output / "below"
    assert run(tmp_path / "a.jpg") == 1
    assert "cannot be made" in run.error()


def test_input_is_never_overwritten(tmp_path: Path, run: Run) -> None:
    picture = save_color(tmp_path / "found" / "a.jpg", "red")
    before = picture.read_bytes()
    assert run(picture) == 1
    assert "would overwrite an input, a.jpg" in run.error()
    assert picture.read_bytes() == before
    assert run(picture, options=("--format", "coco")) == 0


@pytest.mark.parametrize(
    ("options", "opts", "message"),
    [
        (("--format", "image,pdf"), "", "--format: unknown format pdf (some of image,coco,csv)"),
        (("--confidence-threshold", "7"), "", "a score from 0 to 1"),
        (("--batch-size", "0"), "", "at least 1 picture"),
        (("--vocabulary", "red,red"), "", "red"),
        (("--vocabulary", "gone.txt"), "", "gone.txt: no such file"),
        (("--vocabulary", "dataset:gone"), "", "gone"),
        (("--device", "warp"), "", "no such device 'warp'"),
        ((), "MODEL.WEIGHTS gone.pth", "gone.pth"),
        ((), "MODEL.WEIGHT x", "unknown config key MODEL.WEIGHT (did you mean MODEL.WEIGHTS?)"),
        ((), "MODEL.META_ARCHITECTURE None", "None"),
    ],
)
def test_other_mistakes(
    tmp_path: Path, run: Run, options: tuple[str, ...], opts: str, message: str
) -> None:
    assert run(save_color(tmp_path / "a.jpg", "red"), options=options, opts=opts) == 1
    assert message in run.error()


def test_no_weights(tmp_path: Path, run: Run) -> None:
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("WEIGHTS:", "WEIGHTS: ''  #"), encoding="utf-8")
    assert run(save_color(tmp_path / "a.jpg", "red")) == 1
    assert run.error() == (
        "MODEL.WEIGHTS: no weights: the model would be random (add --opts MODEL.WEIGHTS FILE)"
    )


def test_interrupt(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_pictures", interrupt)
    assert run(tmp_path) == 130
    assert run.error() == "interrupted"


def test_debug_shows_the_place(tmp_path: Path, run: Run) -> None:
    assert run(tmp_path / "gone.jpg", options=("--debug",)) == 1
    assert "Traceback" in run.err
    assert run.err.strip().splitlines()[-1].startswith("error: ")


# ---- as a user starts it


@pytest.fixture(scope="module")
def plain_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of a Mask R-CNN, its weights and the dataset that names it."""
    folder = tmp_path_factory.mktemp("plain")
    categories = [{"id": 10 + index, "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": [], "annotations": [], "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "images").mkdir()
    (folder / "datasets.yaml").write_text(
        "datasets:\n  demo_test_val: {type: coco, json: val.json, images: images}\n"
    )
    cfg = tiny_config(masks=True)
    cfg.DATASETS.TEST = ("demo_test_val",)
    cfg.DATASETS.REGISTRY = (str(folder / "datasets.yaml"),)
    save_random_weights(cfg, folder)
    write_config(cfg, folder)
    return folder


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def test_as_a_command(plain_detector: Path, tmp_path: Path) -> None:
    for index in range(3):
        rgb = np.random.default_rng(index).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(tmp_path / f"{index}.png")
    words = ("--config-file", "config.yaml", "--input", str(tmp_path), "--output", "found")
    more = ("--confidence-threshold", "0.2", "--opts", "TEST.DETECTIONS_PER_IMAGE", "4")
    done = start(plain_detector, *words, *more)
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr  # progress
    assert done.stdout.startswith("3 pictures, ")
    coco = COCO(str(plain_detector / "found" / "detections.json"))
    assert [category["name"] for category in coco.dataset["categories"]] == list(CLASSES)
    annotations = coco.dataset["annotations"]
    assert 0 < len(annotations) <= 12
    assert all(a["score"] >= 0.2 for a in annotations)
    assert coco.annToMask(annotations[0]).shape == (40, 60)
    assert len(list((plain_detector / "found").glob("*.jpg"))) == 4


def test_failing_command(plain_detector: Path, tmp_path: Path) -> None:
    picture = save_color(tmp_path / "a.jpg", "red")
    words = ("--config-file", "config.yaml", "--input", str(picture), "--output", "found2")
    done = start(plain_detector, *words, "--vocabulary", "cat, dog")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "fixed list of classes" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
