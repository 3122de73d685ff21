"""Where drawn frames go: a video, numbered pictures, or a window.

Shapes: rgb_HW3 = uint8, RGB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError
from ext_common.video import VideoWriter

from .pictures import write_picture

Show = Callable[[NDArray[np.uint8]], bool]
"""Takes a frame; False = the user wants no more."""

TITLE = "detections (Esc or q: stop)"


def open_sink(path: Path | None, fps: float, *, live: bool) -> AbstractContextManager[Show]:
    """What the output asks for.

    Args:
        path: a video file, a folder for numbered pictures, or None for a window.
        fps: frames per second of a video.
        live: the frames come as fast as they are processed, from a camera.
    """
    if path is None:
        return _window()
    if path.suffix:
        return _video(path, fps, live)
    return _pictures(path)


@contextmanager
def _video(path: Path, fps: float, live: bool) -> Iterator[Show]:
    with VideoWriter(path, fps, clock=time.monotonic if live else None) as writer:

        def show(rgb_HW3: NDArray[np.uint8]) -> bool:
            writer.write(rgb_HW3)
            return True

        yield show


@contextmanager
def _pictures(folder: Path) -> Iterator[Show]:
    count = 0

    def show(rgb_HW3: NDArray[np.uint8]) -> bool:
        nonlocal count
        count += 1
        write_picture(folder / f"frame_{count:06d}.jpg", rgb_HW3)
        return True

    yield show


@contextmanager
def _window() -> Iterator[Show]:
    import cv2

    try:
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise ConfigError(
            "no window can be opened: there is no display, or this OpenCV has no windows",
            where="--output",
            fix="name a video file or a folder, or install opencv-python instead of -headless",
        ) from error

    def show(rgb_HW3: NDArray[np.uint8]) -> bool:
        cv2.imshow(TITLE, rgb_HW3[:, :, ::-1])
        pressed = cv2.waitKey(1) & 0xFF in (27, ord("q"))
        return not pressed and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1

    try:
        yield show
    finally:
        cv2.destroyAllWindows()
