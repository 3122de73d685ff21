"""OpenCV's selective search: many more boxes than the authors' form, near duplicates among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import ConfigError

MODES = ("fast", "quality", "single")
"""``single`` is one colour space with one strategy: the fastest."""


def opencv_search(image_HW3: NDArray[np.uint8], mode: str) -> NDArray[np.int64]:
    """Rectangles x, y, width, height (whole pixels, none short) of an RGB image.

    Raises:
        ConfigError: an unknown mode, or OpenCV without selective search.
    """
    if mode not in MODES:
        raise ConfigError(f"unknown mode {mode!r}", fix=f"one of {', '.join(MODES)}")
    search = opencv_module().createSelectiveSearchSegmentation()
    # a picture of one row or column crashes inside OpenCV
    if min(image_HW3.shape[:2]) < 2:
        return np.array([[0, 0, image_HW3.shape[1], image_HW3.shape[0]]], dtype=np.int64)
    search.setBaseImage(np.ascontiguousarray(image_HW3[:, :, ::-1]))
    switch = {
        "fast": search.switchToSelectiveSearchFast,
        "quality": search.switchToSelectiveSearchQuality,
        "single": search.switchToSingleStrategy,
    }
    switch[mode]()
    rects = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)
    # OpenCV's order comes from rand(), that is, from what this process searched before
    x, y, width, height = rects.T
    return rects[np.lexsort((height, width, y, x, -width * height))]


def opencv_module() -> Any:
    """``cv2.ximgproc.segmentation``.

    Raises:
        ConfigError: no OpenCV, or one without the contributed modules.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            f"OpenCV cannot be imported: {error}",
            fix="make setup, or choose the authors' form or random boxes",
        ) from error
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        raise ConfigError(
            "this OpenCV has no selective search (cv2.ximgproc)",
            # two packages of OpenCV overwrite each other's files; see tools/doctor.py
            fix="pip uninstall every opencv-* package, then make setup",
        )
    cv2.setNumThreads(1)  # the tool uses one process per core
    return cv2.ximgproc.segmentation
