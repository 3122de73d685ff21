"""tools/demo.py on videos, cameras and the screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageGrab

from ext_common.results import read_coco
from ext_common.video import CameraReader, VideoReader, VideoWriter
from tests.ext_common.tiny_detectors import COLORS, color_config, save_random_weights
from tests.tools.test_demo import write_config
from tools import demo
from tools.demo_parts import frames as demo_frames
from tools.demo_parts import sinks

SIZE = (48, 64)


def color_frame(name: str) -> np.ndarray:
    return np.full((*SIZE, 3), COLORS[name], dtype=np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two red frames, three green ones, one red."""
    path = tmp_path / "clip.avi"
    with VideoWriter(path, 5.0) as writer:
        for name in ("red", "red", "green", "green", "green", "red"):
            writer.write(color_frame(name))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    cfg = color_config()
    cfg.DATASETS.TEST = ()
    save_random_weights(cfg, tmp_path)
    return write_config(cfg, tmp_path)


def run(config: Path, *words: object) -> int:
    return demo.main(["--config-file", str(config), *map(str, words)])


def length(path: Path) -> int:
    with VideoReader(path) as reader:
        return len(list(reader))


def test_video_to_video(
    tmp_path: Path, clip: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "found.mp4"
    options = ("--format", "image,coco,csv", "--batch-size", 4, "--timings")
    assert run(config, "--video-input", clip, "--output", output, *options) == 0
    printed = capsys.readouterr()
    assert f"6 frames, 6 detections; written: {output}" in printed.out
    assert "6/6" in printed.err
    for stage in ("read", "model", "draw", "write", "all"):
        assert any(line.startswith(stage) for line in printed.out.splitlines())
    assert {path.name for path in output.parent.iterdir()} == {
        "found.mp4",
        "found.json",
        "found.csv",
    }
    with VideoReader(output) as reader:
        assert reader.fps == 5.0
        drawn = list(reader)
    assert len(drawn) == 6
    assert drawn[0].shape == (192, 256, 3)  # enlarged, so that labels can be read
    results = read_coco(output.parent / "found.json")
    assert [result.names[0] for result in results] == ["red"] * 2 + ["green"] * 3 + ["red"]
    assert [Path(r.file_name).name for r in results] == [f"clip.avi#{n}" for n in range(6)]


def test_video_to_folder(tmp_path: Path, clip: Path, config: Path) -> None:
    output = tmp_path / "found"
    assert run(config, "--video-input", clip, "--output", output, "--max-frames", 4) == 0
    assert [path.name for path in output.iterdir()] == ["clip.mp4"]
    assert length(output / "clip.mp4") == 4


def test_results_without_a_drawn_video(tmp_path: Path, clip: Path, config: Path) -> None:
    output = tmp_path / "found"
    assert run(config, "--video-input", clip, "--output", output, "--format", "coco") == 0
    assert [path.name for path in output.iterdir()] == ["clip.json"]
    assert len(json.loads((output / "clip.json").read_text())["images"]) == 6


def test_truncated_video(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.avi"
    noise = np.random.default_rng(0).integers(0, 100, (6, *SIZE, 3), dtype=np.uint8)
    with VideoWriter(cut, 5.0) as writer:
        for frame in noise:  # frames that take more room than the headers
            writer.write(np.maximum(frame, color_frame("red")))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    readable = length(cut)
    assert 0 < readable < 6
    assert run(config, "--video-input", cut, "--output", tmp_path / "o.mp4") == 0
    said = capsys.readouterr().out
    assert f"{readable} frames, {readable} detections, {6 - readable} broken frames skipped" in said
    assert length(tmp_path / "o.mp4") == readable


def test_empty_results_are_valid(tmp_path: Path, clip: Path, config: Path) -> None:
    options = ("--format", "coco", "--confidence-threshold", 1, "--vocabulary", "cup")
    assert run(config, "--video-input", clip, "--output", tmp_path / "o", *options) == 0
    content = json.loads((tmp_path / "o" / "clip.json").read_text())
    assert (len(content["images"]), content["annotations"]) == (6, [])


def test_interrupted_video_keeps_what_there_is(
    tmp_path: Path,
    clip: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = VideoReader.__iter__

    def interrupted(self: VideoReader) -> Iterator[np.ndarray]:
        for count, frame in enumerate(whole(self)):
            if count == 3:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(VideoReader, "__iter__", interrupted)
    assert run(config, "--video-input", clip, "--output", tmp_path / "o.avi") == 130
    assert capsys.readouterr().err.strip().endswith("error: interrupted")
    monkeypatch.undo()
    assert length(tmp_path / "o.avi") == 3


class Camera:
    """``cv2.VideoCapture`` of a camera that is pulled out after some frames."""

    def __init__(self, names: list[str]) -> None:
        self.frames = [color_frame(name)[:, :, ::-1] for name in names]

    def read(self) -> tuple[bool, Any]:
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def get(self, prop: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """A camera of three frames; lists what was opened."""
    opened: list[int | str] = []

    def reader(source: int | str) -> CameraReader:
        opened.append(source)
        return CameraReader(source, capture=Camera(["red", "green", "red"]))

    monkeypatch.setattr(demo_frames, "CameraReader", _named(reader))
    monkeypatch.setattr("ext_common.video.time.sleep", lambda seconds: None)
    return opened


def _named(make: Any) -> type[CameraReader]:
    class Made(CameraReader):
        def __new__(cls, source: int | str) -> Any:
            return make(source)

    return Made


def test_camera_to_pictures_until_unplugged(
    tmp_path: Path, config: Path, camera: list[int | str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(config, "--webcam", 0, "--output", tmp_path / "o", "--format", "image,coco") == 0
    assert "3 frames, 3 detections" in capsys.readouterr().out
    assert camera == [0]
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    drawn = [f"frame_{number:06d}.jpg" for number in (1, 2, 3)]
    assert names == ["detections.json", *drawn]
    results = read_coco(tmp_path / "o" / "detections.json")
    assert [result.names for result in results] == [("red",), ("green",), ("red",)]


def with_clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """The clock that a live video is written by shows these times, one per frame."""
    times = iter(seconds)

    def writer(path: Path, fps: float, *, clock: object) -> VideoWriter:
        assert clock is not None  # a live source is written at its pace
        return VideoWriter(path, fps, clock=lambda: next(times))

    monkeypatch.setattr(sinks, "VideoWriter", writer)


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        ((10.0, 10.0, 10.0), 1),  # two frames at once share one place
        ((10.0, 10.0, 10.4), 11),  # 25 per second: the second fills what has passed since the first
    ],
)
def test_stream_to_video(
    tmp_path: Path,
    config: Path,
    camera: list[int | str],
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, ...],
    frames: int,
) -> None:
    with_clock(monkeypatch, *seconds)
    output = tmp_path / "o.avi"
    assert run(config, "--webcam", "rtsp://door/1", "--output", output, "--max-frames", 2) == 0
    assert camera == ["rtsp://door/1"]
    assert length(output) == frames


def test_window(config: Path, camera: list[int | str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, ...]] = []
    keys = iter([-1, 27])
    monkeypatch.setattr(cv2, "namedWindow", lambda title, kind: None, raising=False)
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append(frame.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, which: 1.0)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append(()))
    assert run(config, "--webcam", "1") == 0
    assert shown == [(192, 256, 3), (192, 256, 3), ()]  # Esc at the second frame


def test_no_window(
    config: Path,
    camera: list[int | str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise cv2.error("no display")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    assert run(config, "--webcam", "0") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: --output: no window can be opened")


def test_screen(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Image.new("RGB", (64, 48), COLORS["red"])
    screen.paste(COLORS["green"], (32, 0, 64, 48))
    monkeypatch.setattr(ImageGrab, "grab", lambda: screen)
    options = ("--max-frames", 2, "--format", "coco")
    assert run(config, "--webcam", "screen", "--output", tmp_path / "o", *options) == 0
    results = read_coco(tmp_path / "o" / "detections.json")
    assert [(r.image_size, r.names) for r in results] == [((48, 32), ("red",))] * 2  # left half


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--video-input", "gone.mp4", "--output", "o"), "gone.mp4: no such file"),
        (("--video-input", "{clip}", "--output", "{clip}"), "would overwrite the input"),
        (("--video-input", "{clip}", "--output", "{config}"), "the output is a file"),
        (("--video-input", "{clip}", "--format", "coco"), "--output: no output"),
        (("--video-input", "{clip}", "--output", "o", "--max-frames", "0"), "--max-frames 0"),
        (("--webcam", "93", "--output", "o"), "93: no such camera"),
        (("--input", "{clip}"), "--output: no output"),
    ],
)
def test_mistakes(
    clip: Path,
    config: Path,
    words: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = clip.read_bytes()
    assert run(config, *(word.format(clip=clip, config=config) for word in words)) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert clip.read_bytes() == before


def test_video_without_a_readable_frame(
    tmp_path: Path,
    clip: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: iter(()))
    assert run(config, "--video-input", clip, "--output", tmp_path / "o.mp4") == 1
    assert "clip.avi: not one frame can be read" in capsys.readouterr().err
    assert not (tmp_path / "o.mp4").exists()


def test_live_sink_repeats_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_clock(monkeypatch, 0.0, 0.0, 1.0)
    with sinks.open_sink(tmp_path / "a.avi", 4.0, live=True) as show:
        assert show(color_frame("red"))
        assert show(color_frame("green"))
    monkeypatch.undo()
    assert length(tmp_path / "a.avi") == 5
