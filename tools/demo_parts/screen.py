"""The screen as a camera: its left half, so that a window of results fits beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ImageGrab

from ext_common.errors import ImageError


class ScreenReader:
    """Iterates pictures of the screen, rgb_HW3, for ever.

    Attributes:
        fps: of a video made of them.
    """

    fps = 10.0
    announced = skipped = 0
    unplugged = False

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The screen now.

        Raises:
            ImageError: there is no screen.
        """
        while True:
            try:
                rgb_HW3 = np.array(ImageGrab.grab().convert("RGB"))
            except OSError as error:
                raise ImageError(
                    f"the screen cannot be read: {error}",
                    where="--webcam screen",
                    fix="run it where there is a display",
                ) from error
            yield np.ascontiguousarray(rgb_HW3[:, : max(1, rgb_HW3.shape[1] // 2)])

    def __enter__(self) -> ScreenReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass
