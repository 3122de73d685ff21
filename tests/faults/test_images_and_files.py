"""Cases 1 to 9 of docs/reliability.md: bad image files."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ext_common import packages
from ext_common.config import get_config, load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.data.loader import build_train_loader
from ext_common.data.mapper import DetectionMapper
from ext_common.errors import DatasetError, ImageError
from ext_common.images import read_image
from ext_common.trainer import build_model
from tests.dist.tiny_training import TinyRun, write_run
from tests.faults.data_runs import (
    annotations,
    as_user,
    check,
    final_line,
    last_metrics,
    set_annotations,
    train,
)

RAISE = ("INPUT.BAD_SAMPLE_POLICY", "raise")


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    return write_run(tmp_path)


def config(run: TinyRun, *words: str) -> CfgNode:
    """The configuration of a run in this process."""
    packages.register_all()
    cfg = load_config(run.config_file, words)
    register_from_config(cfg)
    return cfg


def batches(run: TinyRun, count: int, *words: str) -> list[list[dict[str, Any]]]:
    """The first batches of the run's training loader."""
    return list(islice(build_train_loader(config(run, *words)), count))


def picture(run: TinyRun, number: int = 1) -> Path:
    return run.data / "images" / f"{number}.png"


def damage(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("<html>404 not found</html>")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
        path.write_bytes(path.with_suffix(".jpg").read_bytes()[:-500])


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
def test_case_01_unreadable_image(
    run: TinyRun, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(picture(run, 3), how)
    assert check(run, "--decode") == 1
    captured = capsys.readouterr()
    assert "file-unreadable          1" in captured.out
    assert "3 (3.png: " in captured.out
    assert "1 problems" in final_line(captured.err)
    assert train(run, *RAISE) == 1
    assert "images/3.png" in final_line(capsys.readouterr().err)
    again = replace(run, output=run.output.with_name("again"))
    assert train(again) == 0
    metrics = last_metrics(again)
    assert metrics["bad_samples"] >= 1
    log = (again.output / "log.txt").read_text()
    assert "skipped bad sample 1 of" in log
    assert "images/3.png" in log


def test_case_01_a_user_sees_one_line_and_an_exit_code(run: TinyRun) -> None:
    for number in (1, 2, 3):
        damage(picture(run, number), "truncated")
    stopped = as_user("train_net", "--config-file", str(run.config_file), "SOLVER.MAX_ITER", "40")
    assert stopped.returncode == 1
    line = final_line(stopped.stderr)
    assert line.startswith("train_net: error: 11 of ")
    assert "samples are bad, more than 0.100%; the last: " in line
    assert "raise INPUT.BAD_SAMPLE_LIMIT" in line
    # what was trained until then is kept
    assert list(run.output.glob("model_*.pth"))


def test_case_01_the_replacement_is_the_same_in_every_run(run: TinyRun) -> None:
    damage(picture(run, 2), "empty")
    found = [
        [[(s["image_id"], float(s["image"].sum())) for s in batch] for batch in batches(run, 6, *w)]
        for w in ((), ("DATALOADER.NUM_WORKERS", "2"))
    ]
    assert found[0] == found[1]
    assert {image_id for batch in found[0] for image_id, _ in batch} == {1, 3, 4}


CONVERSIONS = {
    "grey": (Image.new("L", (3, 2), 77), (77, 77, 77)),
    "one bit": (Image.new("1", (3, 2), 1), (255, 255, 255)),
    "16 bit": (Image.fromarray(np.full((2, 3), 0x8000, np.uint16)), (128, 128, 128)),
    "alpha": (Image.new("RGBA", (3, 2), (0, 0, 200, 0)), (255, 255, 255)),
    "grey and alpha": (Image.new("LA", (3, 2), (10, 255)), (10, 10, 10)),
    "palette": (Image.new("RGB", (3, 2), (9, 200, 30)).quantize(4), (9, 200, 30)),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_case_02_every_kind_of_pixels_has_a_conversion(tmp_path: Path, name: str) -> None:
    image, rgb = CONVERSIONS[name]
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", format="RGB")
    assert found.shape == (2, 3, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8(rgb), (2, 3, 3)))


def test_case_02_cmyk_and_animation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red = read_image(tmp_path / "a.jpg", format="RGB").reshape(-1, 3).mean(0)
    assert red[0] > 200
    assert red[1:].max() < 60
    assert "first" not in caplog.text
    frames = [Image.new("RGB", (4, 4), color) for color in ((0, 0, 255), (255, 0, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", format="RGB")[0, 0].tolist() == [0, 0, 255]
    assert "a.gif: animated or several pages; only the first is read" in caplog.text


_TURNS = {
    1: (),
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}
"""How a camera that writes each orientation stores an upright picture."""


@given(
    orientation=st.integers(1, 8),
    left=st.integers(0, 40),
    top=st.integers(0, 20),
    width=st.integers(3, 16),
    height=st.integers(3, 16),
    seed=st.integers(0, 1000),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_case_03_turned_pixels_and_boxes_stay_together(
    tmp_path: Path, orientation: int, left: int, top: int, width: int, height: int, seed: int
) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[top : top + height, left : left + width] = 255
    stored = Image.fromarray(upright)
    for turn in _TURNS[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    cfg = get_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    np.random.seed(seed)  # noqa: NPY002 - whether it is flipped
    sample = DetectionMapper(cfg, is_train=True)(
        {
            "file_name": str(tmp_path / "a.png"),
            "height": 40,
            "width": 60,
            "annotations": [{"bbox": [left, top, width, height], "bbox_mode": 1, "category_id": 0}],
        }
    )
    (box,) = sample["instances"].gt_boxes.tensor.round().int().tolist()
    bright_HW = sample["image"][0] > 127
    outside_HW = bright_HW.clone()
    outside_HW[box[1] : box[3], box[0] : box[2]] = False
    assert bright_HW[box[1] : box[3], box[0] : box[2]].float().mean() > 0.9
    assert not outside_HW.any()


def declared_png(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and has nothing more."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_case_04_decompression_bomb_is_refused_before_decoding(
    run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(run).write_bytes(declared_png(60_000, 60_000))
    with pytest.raises(
        ImageError, match="60000 x 60000 pixels are more than the limit of 178956970"
    ):
        read_image(picture(run))
    assert check(run) == 1
    assert "1 (1.png: 60000 x 60000 pixels, over the limit)" in capsys.readouterr().out
    assert train(run, *RAISE) == 1
    assert "1.png" in final_line(capsys.readouterr().err)
    picture(run).unlink()
    picture(run, 2).rename(picture(run))
    assert train(run, *RAISE, "INPUT.MAX_PIXELS", "6000") == 1
    line = final_line(capsys.readouterr().err)
    assert "96 x 64 pixels are more than the limit of 6000 (shrink the image or raise" in line


def test_case_04_the_limit_can_be_raised(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own
    with pytest.raises(Image.DecompressionBombError):
        Image.open(picture(run))
    assert read_image(picture(run)).shape == (64, 96, 3)
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


SHAPES = [(1, 1), (1, 5000), (5000, 1), (2, 3000)]


@pytest.mark.parametrize("augmentation", ["", "EfficientDetResizeCrop", "DETR"])
def test_case_05_pictures_of_any_shape(run: TinyRun, augmentation: str) -> None:
    data = annotations(run)
    for image, (height, width) in zip(data["images"], SHAPES, strict=True):
        Image.new("RGB", (width, height), (9, 9, 200)).save(
            run.data / "images" / image["file_name"]
        )
        image.update(height=height, width=width)
    for entry in data["annotations"]:
        image = data["images"][entry["image_id"] - 1]
        entry["bbox"] = [0, 0, image["width"], image["height"]]
    set_annotations(run, data)
    cfg = config(run, "INPUT.CUSTOM_AUG", augmentation, "INPUT.TRAIN_SIZE", "64")
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 640
    model = build_model(cfg)
    for batch in islice(build_train_loader(cfg), 4):
        assert all(min(sample["image"].shape) >= 1 for sample in batch)
        with EventStorage():
            losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values())
        for sample in batch:
            height, width = sample["instances"].image_size
            boxes_R4 = sample["instances"].gt_boxes.tensor
            assert (boxes_R4 >= 0).all()
            assert (boxes_R4 <= torch.tensor([width, height, width, height])).all()
    model.eval()
    to_test = DetectionMapper(cfg, is_train=False)
    for image, (height, width) in zip(data["images"], SHAPES, strict=True):
        name = str(run.data / "images" / image["file_name"])
        (result,) = model([to_test({"file_name": name})])
        boxes_R4 = result["instances"].pred_boxes.tensor
        assert (boxes_R4 <= torch.tensor([width, height, width, height])).all()
        assert (boxes_R4 >= 0).all()


def test_case_05_very_large_pictures_shrink(tmp_path: Path) -> None:
    Image.new("L", (10_000, 10_000), 77).save(tmp_path / "a.png", compress_level=1)
    cfg = get_config()
    sample = DetectionMapper(cfg, is_train=False)({"file_name": str(tmp_path / "a.png")})
    assert sample["image"].shape == (3, 800, 800)
    assert (sample["height"], sample["width"]) == (10_000, 10_000)


def test_case_06_recorded_size_differs(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    data = annotations(run)
    data["images"][0]["height"] = 65
    set_annotations(run, data)
    assert check(run) == 1
    assert "1 (1.png: 96 x 64, recorded 96 x 65)" in capsys.readouterr().out
    assert train(run, *RAISE) == 1
    line = final_line(capsys.readouterr().err)
    assert "the image is 96 x 64 pixels, its record says 96 x 65 (width x height)" in line
    assert "INPUT.TRUST_FILES" in line
    again = replace(run, output=run.output.with_name("again"))
    assert train(again, *RAISE, "INPUT.TRUST_FILES", "True") == 0
    log = (again.output / "log.txt").read_text()
    assert "its record says 96 x 65 (width x height); going by the file" in log


NAMES = ["straße 🙂.png", "two words.png", "new\nline.png", "x" * 251 + ".png"]


def test_case_07_unusual_file_names(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    data = annotations(run)
    for image, name in zip(data["images"], NAMES, strict=True):
        picture(run, image["id"]).rename(run.data / "images" / name)
        image["file_name"] = name
    set_annotations(run, data)
    assert check(run, "--decode") == 0
    assert train(run, *RAISE, "DATASETS.TEST", f"('{run.val}',)") == 0
    assert (run.output / "results.json").is_file()
    capsys.readouterr()
    for name in NAMES:
        (run.data / "images" / name).write_bytes(b"")
    assert train(run, *RAISE) == 1
    assert final_line(capsys.readouterr().err).startswith("train_net: error: ")
    assert check(run) == 1
    assert "new\\nline.png" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["parent", "absolute", "link", "linked folder"])
def test_case_08_names_that_leave_the_image_folder(
    run: TinyRun, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    picture(run).rename(secret / "1.png")
    data = annotations(run)
    image = data["images"][0]
    if how == "parent":
        image["file_name"] = "../../secret/1.png"
    elif how == "absolute":
        image["file_name"] = str(secret / "1.png")
    elif how == "link":
        picture(run).symlink_to(secret / "1.png")
    else:
        (run.data / "images" / "sub").symlink_to(secret)
        image["file_name"] = "sub/1.png"
    set_annotations(run, data)
    assert check(run) == 1
    assert ("link-leaves-root" if "link" in how else "name-leaves-root") in capsys.readouterr().out
    assert train(run) == 1  # whatever the policy for bad samples
    line = final_line(capsys.readouterr().err)
    assert "instances.json: 1 images" in line
    assert "leave" in line
    assert not list(run.output.glob("*.pth"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_case_09_an_image_that_disappears(
    run: TinyRun, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(run) == 0
    cfg = config(run, *RAISE, "DATALOADER.NUM_WORKERS", workers)
    loader = build_train_loader(cfg)  # everything is checked
    os.unlink(picture(run, 4))
    with pytest.raises(ImageError, match=r"images/4\.png: no such file"):
        list(islice(loader, 4))
    skipping = build_train_loader(config(run, "DATALOADER.NUM_WORKERS", workers))
    found = {sample["image_id"] for batch in islice(skipping, 6) for sample in batch}
    assert found == {1, 2, 3}
    assert skipping.policy.skipped >= 1
    for number in (1, 2, 3):
        os.unlink(picture(run, number))
    with pytest.raises(DatasetError, match="samples are bad|none of the samples can be read"):
        list(islice(skipping, 20))
    assert check(run) == 1
    assert "file-missing" in capsys.readouterr().out
