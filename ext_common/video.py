"""Frames of video files and cameras, and writing videos. OpenCV is imported when it is needed.

A frame that cannot be decoded is skipped and counted, as often as the file goes on after it; a
camera that gives no frames any more ends the stream.

Shapes: H, W = rows and columns of a frame; rgb_HW3 = uint8, RGB, upright.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ext_common.atomic_file import replacing
from ext_common.errors import ConfigError, ImageError
from ext_common.images import printable

Frame = NDArray[np.uint8]

# ending -> encoders to try in turn: the wanted one, then the one that every OpenCV brings along
_ENCODERS = {
    ".mp4": ("avc1", "mp4v"),
    ".m4v": ("avc1", "mp4v"),
    ".mov": ("avc1", "mp4v"),
    ".mkv": ("X264", "mp4v"),
    ".webm": ("VP90", "VP80"),
    ".avi": ("MJPG",),
}
VIDEO_SUFFIXES = frozenset(_ENCODERS)
"""File name endings (lower case) of the videos that can be written."""

DEFAULT_FPS = 25.0
"""Of a file or camera that does not say."""

_FILE_FAILURES = 50  # so many frames in a row cannot be read: the rest of the file is gone
_CAMERA_FAILURES = 10  # with a pause after each
_CAMERA_PAUSE = 0.05  # seconds


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def read(self) -> tuple[bool, Any]:
        """Whether there was a frame, and the frame [H, W, 3], BGR."""

    def get(self, prop: int) -> float:
        """A property by OpenCV's number."""

    def release(self) -> None:
        """Give the device or file back."""


class VideoReader:
    """Iterates the frames of a file, once.

    Args:
        path: any video that OpenCV reads.
        capture: an opened source to use instead of opening ``path``.

    Attributes:
        fps: frames per second.
        announced: how many frames the file says it has; 0 where it does not say.
        skipped: frames so far that could not be read; those that are missing at the end of a cut
            file are counted when the end is reached.

    Raises:
        ImageError: no such file, or not a video.
    """

    def __init__(self, path: str | Path, *, capture: Capture | None = None) -> None:
        self.path = Path(path).expanduser()
        self._capture = _open_file(self.path) if capture is None else capture
        cv2 = _cv2()
        self.fps = _plausible_fps(self._capture.get(cv2.CAP_PROP_FPS))
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(count) if 0 < count < 2**31 else 0  # some formats say nonsense
        self.skipped = 0

    def __iter__(self) -> Iterator[Frame]:
        """The frames that can be read."""
        good = failed = in_a_row = 0
        while in_a_row < _FILE_FAILURES:
            ok, bgr_HW3 = self._capture.read()
            if ok and bgr_HW3 is not None and bgr_HW3.size:
                good, failed, in_a_row = good + 1, failed + in_a_row, 0
                self.skipped = failed
                yield _rgb(bgr_HW3)
            elif good + failed + in_a_row >= self.announced:
                break  # where nothing is announced: at the first failure
            else:
                in_a_row += 1
        self.skipped = max(failed, self.announced - good)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


class CameraReader:
    """Iterates the frames of a camera until it is unplugged.

    Args:
        source: number of a camera, or the address of a stream.
        capture: an opened source to use instead.

    Attributes:
        fps: frames per second.
        unplugged: the stream ended because no more frames came.

    Raises:
        ImageError: no such camera or stream.
    """

    announced = 0
    skipped = 0

    def __init__(self, source: int | str, *, capture: Capture | None = None) -> None:
        self._capture = _open_camera(source) if capture is None else capture
        self.fps = _plausible_fps(self._capture.get(_cv2().CAP_PROP_FPS))
        self.unplugged = False

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they come."""
        failures = 0
        while failures < _CAMERA_FAILURES:
            ok, bgr_HW3 = self._capture.read()
            if ok and bgr_HW3 is not None and bgr_HW3.size:
                self.skipped, failures = self.skipped + failures, 0
                yield _rgb(bgr_HW3)
            else:
                failures += 1
                time.sleep(_CAMERA_PAUSE)
        self.unplugged = True

    def __enter__(self) -> CameraReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


class VideoWriter:
    """Writes frames to a video file, which appears under its name when it is complete.

    All frames get the size of the first one, less one row or column where that is odd (encoders
    want even sizes).

    Args:
        path: ending in one of :data:`VIDEO_SUFFIXES`.
        fps: frames per second.
        clock: seconds; given for a live source, whose frames are then repeated as needed, so that
            the video takes as long as the recording did. None = every frame once.

    Raises:
        ConfigError: another ending, or no encoder for it.
        ImageError: closed without a frame.
    """

    def __init__(
        self, path: str | Path, fps: float, *, clock: Callable[[], float] | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ConfigError(
                f"cannot write a video that ends in {self.path.suffix or 'nothing'!r}",
                where=printable(self.path),
                fix=f"use one of {' '.join(sorted(VIDEO_SUFFIXES))}",
            )
        self.fps = fps
        self.written = 0
        self._clock = clock
        self._start = 0.0
        self._files = ExitStack()
        self._temporary = self.path
        self._writer: Any = None
        self._size_WH = (0, 0)

    def __enter__(self) -> VideoWriter:
        self._temporary = self._files.enter_context(replacing(self.path))
        return self

    def write(self, rgb_HW3: Frame) -> None:
        """Append a frame."""
        cv2 = _cv2()
        if self._writer is None:
            height, width = rgb_HW3.shape[:2]
            self._size_WH = (max(2, width // 2 * 2), max(2, height // 2 * 2))
            self._writer = _open_writer(self._temporary, self.path, self.fps, self._size_WH)
            self._start = self._clock() if self._clock else 0.0
        width, height = self._size_WH
        if abs(rgb_HW3.shape[0] - height) > 1 or abs(rgb_HW3.shape[1] - width) > 1:
            rgb_HW3 = cv2.resize(rgb_HW3, self._size_WH, interpolation=cv2.INTER_AREA)
        fitting_HW3 = cv2.copyMakeBorder(
            rgb_HW3[:height, :width],
            *(0, height - min(height, rgb_HW3.shape[0])),
            *(0, width - min(width, rgb_HW3.shape[1])),
            cv2.BORDER_REPLICATE,
        )
        bgr_HW3 = np.ascontiguousarray(fitting_HW3[:, :, ::-1])
        for _ in range(self._times()):
            self._writer.write(bgr_HW3)
            self.written += 1

    def _times(self) -> int:
        if self._clock is None:
            return 1
        due = round((self._clock() - self._start) * self.fps) + 1
        return max(0 if self.written else 1, due - self.written)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._writer is None:
            empty = ImageError("no frame was written", where=printable(self.path))
            self._files.__exit__(ImageError, empty, None)  # removes the temporary file
            raise empty
        self._files.__exit__(kind, error, trace)


def _cv2() -> Any:
    """OpenCV, or what to do without it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "videos and cameras need OpenCV", fix="pip install opencv-python-headless"
        ) from error
    return cv2


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV's own messages: attempts that fail are part of the plan."""
    log = getattr(getattr(_cv2(), "utils", None), "logging", None)
    if log is None:  # an OpenCV without this switch
        yield
        return
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _open_file(path: Path) -> Capture:
    where = printable(path)
    if not path.exists():
        raise ImageError("no such file", where=where, fix="check the path")
    if not path.is_file():
        raise ImageError("not a file", where=where, fix="name a video file")
    if path.stat().st_size == 0:
        raise ImageError("the file is empty", where=where, fix="copy or download it again")
    with _quiet():
        capture: Capture | None = _opened(str(path))
    if capture is None:
        raise ImageError(
            "cannot be opened as a video: another kind of file, or its end, which holds the index, "
            "is missing",
            where=where,
            fix="copy it again, or convert it with ffmpeg",
        )
    return capture


def _open_camera(source: int | str) -> Capture:
    with _quiet():
        capture = _opened(source)
    if capture is None:
        raise ImageError(
            "no such camera" if isinstance(source, int) else "cannot open the stream",
            where=printable(str(source)),
            fix="check the number and the cable (0 is the first camera), or the address",
        )
    return capture


def _opened(source: int | str) -> Capture | None:
    capture = _cv2().VideoCapture(source)
    if capture.isOpened():
        opened: Capture = capture
        return opened
    capture.release()
    return None


def _open_writer(temporary: Path, target: Path, fps: float, size_WH: tuple[int, int]) -> Any:
    cv2 = _cv2()
    names = _ENCODERS[target.suffix.lower()]
    with _quiet():
        for name in names:
            code = cv2.VideoWriter_fourcc(*name)
            writer = cv2.VideoWriter(str(temporary), code, fps, size_WH)
            if writer.isOpened():
                return writer
            writer.release()
    raise ConfigError(
        f"OpenCV has no encoder of {', '.join(names)} for {size_WH[0]} x {size_WH[1]} pixels",
        where=printable(target),
        fix="use .mp4 or .avi, or a smaller picture",
    )


def _plausible_fps(fps: float) -> float:
    return fps if 0.1 <= fps <= 1000 else DEFAULT_FPS


def _rgb(bgr_HW3: Any) -> Frame:
    if bgr_HW3.ndim == 2:  # some cameras are grey
        return np.repeat(bgr_HW3[:, :, None], 3, axis=2)
    return np.ascontiguousarray(bgr_HW3[:, :, 2::-1])
