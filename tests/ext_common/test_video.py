"""ext_common/video.py on real files, and on sources that fail in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ext_common import video
from ext_common.errors import ConfigError, ExtError, ImageError
from ext_common.video import CameraReader, VideoReader, VideoWriter


def grey_frames(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Plain frames, each of its own brightness; red is 20 above the others."""
    frames = []
    for index in range(count):
        frame = np.full((*size, 3), 40 + 5 * index, dtype=np.uint8)
        frame[:, :, 0] += 20
        frames.append(frame)
    return frames


def write(path: Path, frames: Sequence[np.ndarray], fps: float = 10.0) -> Path:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


class FakeCapture:
    """Gives frames (BGR) or failures in a fixed order, then only failures."""

    def __init__(self, frames: Sequence[np.ndarray | None], announced: float = 0.0) -> None:
        self.frames = list(frames)
        self.announced = announced
        self.released = False

    def read(self) -> tuple[bool, Any]:
        frame = self.frames.pop(0) if self.frames else None
        return frame is not None, frame

    def get(self, prop: int) -> float:
        return self.announced if prop == cv2.CAP_PROP_FRAME_COUNT else 0.0

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_written_video_is_read_back(tmp_path: Path, suffix: str) -> None:
    frames = grey_frames(12)
    path = write(tmp_path / f"clip{suffix}", frames)
    with VideoReader(path) as reader:
        assert (reader.fps, reader.announced) == (10.0, 12)
        seen = list(reader)
    assert reader.skipped == 0
    assert len(seen) == 12
    for got, wanted in zip(seen, frames, strict=True):
        assert (got.dtype, got.shape) == (np.uint8, (48, 64, 3))
        # lossy, but channels are in order and frames are not exchanged
        assert np.abs(got.mean(axis=(0, 1)) - wanted.mean(axis=(0, 1))).max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_odd_and_changing_sizes(tmp_path: Path) -> None:
    frames = [*grey_frames(2, (49, 65)), *grey_frames(1, (20, 30)), *grey_frames(1, (48, 64))]
    with VideoReader(write(tmp_path / "clip.avi", frames)) as reader:
        assert [frame.shape for frame in reader] == [(48, 64, 3)] * 4


def test_cut_video_is_read_to_its_end(tmp_path: Path) -> None:
    content = write(tmp_path / "clip.avi", grey_frames(30)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 6 // 10])
    with VideoReader(tmp_path / "cut.avi") as reader:
        seen = len(list(reader))
    assert 5 < seen < 30
    assert reader.skipped == 30 - seen


def test_hole_in_a_video(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    content = bytearray(write(tmp_path / "clip.avi", list(noise)).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = bytes(6000)
    (tmp_path / "hole.avi").write_bytes(content)
    with VideoReader(tmp_path / "hole.avi") as reader:
        seen = len(list(reader))
    assert 20 < seen < 30
    assert reader.skipped == 30 - seen


def test_broken_frames_are_counted() -> None:
    a, b, c = grey_frames(3)
    capture = FakeCapture([a, None, None, b, c], announced=5)
    with VideoReader("unused", capture=capture) as reader:
        assert reader.fps == video.DEFAULT_FPS
        assert len(list(reader)) == 3
        assert reader.skipped == 2
    assert capture.released


def test_file_that_announces_nothing_ends_at_the_first_failure() -> None:
    (a,) = grey_frames(1)
    reader = VideoReader("unused", capture=FakeCapture([a, None, a], announced=-1e18))
    assert reader.announced == 0
    assert len(list(reader)) == 1
    assert reader.skipped == 0


def test_file_that_announces_too_much_ends() -> None:
    reader = VideoReader("unused", capture=FakeCapture(grey_frames(3), announced=1e6))
    assert len(list(reader)) == 3
    assert reader.skipped == 10**6 - 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "the file is empty"), (b"plain text", "cannot be opened")],
)
def test_what_is_no_video(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        VideoReader(path)
    assert caught.value.where == str(path)
    with pytest.raises(ImageError, match="not a file"):
        VideoReader(tmp_path)


def test_mp4_without_its_end(tmp_path: Path) -> None:
    content = write(tmp_path / "clip.mp4", grey_frames(9)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="convert it with ffmpeg"):
        VideoReader(tmp_path / "cut.mp4")


def test_unplugged_camera_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(video.time, "sleep", pauses.append)
    a, b = grey_frames(2)
    capture = FakeCapture([a, None, b[:, :, 0]])  # a glitch, and a grey frame
    with CameraReader(0, capture=capture) as camera:
        seen = list(camera)
    assert [frame.shape for frame in seen] == [(48, 64, 3)] * 2
    assert (seen[0] == a[:, :, ::-1]).all()
    assert (camera.unplugged, camera.skipped) == (True, 1)
    assert 2 <= len(pauses) < 100
    assert capture.released


def test_no_such_camera() -> None:
    with pytest.raises(ImageError, match="83: no such camera"):
        CameraReader(83)


@pytest.mark.parametrize("frames", [[], [*grey_frames(1), None]], ids=["nothing", "an error"])
def test_writing_keeps_the_old_file_after_an_error(tmp_path: Path, frames: list[Any]) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises((ImageError, AttributeError)):
        write(path, frames)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_live_video_takes_as_long_as_the_recording(tmp_path: Path) -> None:
    times = iter([100.0, 100.0, 100.5, 100.52, 102.0])
    with VideoWriter(tmp_path / "live.avi", 10.0, clock=lambda: next(times)) as writer:
        for frame in grey_frames(4):
            writer.write(frame)
    assert writer.written == 21  # 0 s to 2 s at 10 frames per second
    with VideoReader(tmp_path / "live.avi") as reader:
        assert len(list(reader)) == 21


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in '\.gif'.*\.mp4"):
        VideoWriter(tmp_path / "a.gif", 10.0)


def test_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video._ENCODERS, ".avi", ("XXXX",))
    with pytest.raises(ExtError, match="no encoder of XXXX for 64 x 48"):
        write(tmp_path / "a.avi", grey_frames(1))
    assert list(tmp_path.iterdir()) == []
