"""Case 40 of docs/reliability.md: faults while detecting, met with tools/demo.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ext_common.predictor import Predictor
from ext_common.video import CameraReader, VideoWriter
from tests.ext_common.tiny_detectors import color_config, save_random_weights
from tests.tools.test_demo import save_color, write_config
from tests.tools.test_demo_frames import Camera, color_frame, length
from tools import demo
from tools.demo_parts import frames as demo_frames

Detect = Callable[..., int]


@pytest.fixture
def detect(tmp_path: Path) -> Detect:
    """tools/demo.py with a detector of one object per picture."""
    cfg = color_config()
    cfg.DATASETS.TEST = ()
    save_random_weights(cfg, tmp_path)
    config = write_config(cfg, tmp_path)
    return lambda *words: demo.main(["--config-file", str(config), *map(str, words)])


def last_line(capture: pytest.CaptureFixture[str]) -> str:
    """The last line of an error, which comes without a traceback."""
    text = capture.readouterr().err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def test_case_40_zero_detections_are_empty_valid_results(tmp_path: Path, detect: Detect) -> None:
    picture, output = save_color(tmp_path / "blue.jpg", "blue"), tmp_path / "found"
    words = ["--confidence-threshold", 0.9, "--format", "image,coco,csv"]
    assert detect("--input", picture, "--output", output, *words) == 0
    content = json.loads((output / "detections.json").read_text())
    assert [image["id"] for image in content["images"]] == [1]
    assert content["annotations"] == []
    assert len(content["categories"]) == 2
    assert len((output / "detections.csv").read_text().splitlines()) == 1
    assert (output / "blue.jpg").stat().st_size > 0


def test_case_40_a_model_in_training_mode_detects_all_the_same() -> None:
    predictor = Predictor(color_config())
    (expected,) = predictor([color_frame("red")], array_format="RGB")
    predictor.model.train()
    (found,) = predictor([color_frame("red")], array_format="RGB")
    assert found.names == expected.names == ("red",)
    assert not predictor.model.training


def test_case_40_broken_frames_are_skipped_and_counted(
    tmp_path: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    video, noise = tmp_path / "cut.avi", np.random.default_rng(0)
    with VideoWriter(video, 5.0) as writer:
        for _ in range(6):
            writer.write(noise.integers(0, 100, (48, 64, 3), dtype=np.uint8))
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    whole = length(video)
    assert 0 < whole < 6
    assert detect("--video-input", video, "--output", tmp_path / "found.mp4") == 0
    assert f"{6 - whole} broken frames skipped" in capsys.readouterr().out
    assert length(tmp_path / "found.mp4") == whole


def plug_in(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    class Plugged(CameraReader):
        def __init__(self, source: int | str) -> None:
            super().__init__(source, capture=Camera(["red"] * frames))

    monkeypatch.setattr(demo_frames, "CameraReader", Plugged)
    monkeypatch.setattr("ext_common.video.time.sleep", lambda seconds: None)


def test_case_40_an_unplugged_camera_keeps_what_it_gave(
    tmp_path: Path,
    detect: Detect,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, 3)
    assert detect("--webcam", 0, "--output", tmp_path / "o", "--format", "image,coco") == 0
    assert "3 frames, 3 detections" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "o" / "detections.json").read_text())["images"]) == 3
    # one that never gives anything, and one that is not there, are errors
    plug_in(monkeypatch, 0)
    assert detect("--webcam", 0, "--output", tmp_path / "p") == 1
    assert last_line(capsys).startswith("error: 0: not one frame")
    monkeypatch.undo()
    assert detect("--webcam", 93, "--output", tmp_path / "p") == 1
    assert "93: no such camera" in last_line(capsys)


def test_case_40_an_output_of_the_wrong_kind_is_refused(
    tmp_path: Path, detect: Detect, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, output = save_color(tmp_path / "a.jpg", "red"), tmp_path / "found"
    output.write_text("mine")
    assert detect("--input", picture, "--output", output) == 1
    assert f"{output}: the output is a file" in last_line(capsys)
    assert output.read_text() == "mine"
    (tmp_path / "folder" / "detections.json").mkdir(parents=True)
    assert detect("--input", picture, "--output", tmp_path / "folder", "--format", "coco") == 1
    line = last_line(capsys)
    assert line.startswith("error: ")
    assert "detections.json" in line
