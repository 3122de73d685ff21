"""The segments that selective search begins with: Felzenszwalb's, label for label scikit-image's.

The labels have to be equal down to the order of equal edges: blur, costs and order of the edges are
therefore the same steps of SciPy and NumPy, and only what goes edge by edge is our own (compiled).

Legend: H, W rows and columns of the image; E edges between neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ext_common.errors import ConfigError

_TOO_MANY = 2**31  # pixels, for the integers of the segmentation


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the segmentation; the defaults are those of the authors' driver.

    Args:
        scale: higher = larger segments; above 0.
        sigma: of the Gaussian blur before it, in pixels, at least 0.
        min_size: smaller segments are joined with a neighbour, in pixels.

    Raises:
        ConfigError: one is outside its range.
    """

    scale: float = 300.0
    sigma: float = 0.9
    min_size: int = 100

    def __post_init__(self) -> None:
        ranges = (
            ("scale", 0 < self.scale < math.inf, "a number above 0"),
            ("sigma", 0 <= self.sigma < math.inf, "a number of at least 0"),
            (
                "min_size",
                0 <= self.min_size < _TOO_MANY,
                f"a number of pixels from 0 to {_TOO_MANY - 1}",
            ),
        )
        for name, fits, what in ranges:
            if not fits:
                option = "--" + name.replace("_", "-")  # of soco-proposals
                raise ConfigError(f"{getattr(self, name)}", where=option, fix=f"give {what}")


PUBLISHED_SEARCH = SearchSettings()


def segment(image_HW3: NDArray[np.uint8], settings: SearchSettings) -> NDArray[np.int64]:
    """Segments of an image.

    Args:
        image_HW3: RGB.
        settings: scale (for values 0 to 255), blur and least size.

    Returns:
        int64 [H, W] number of the segment of each pixel, in the order of their first pixels.

    Raises:
        ConfigError: Numba is missing.
    """
    height, width = image_HW3.shape[:2]
    blur = (settings.sigma, settings.sigma, 0)
    blurred_HW3 = gaussian_filter(image_HW3 / 255.0, blur, mode="reflect")
    cost_E = _edge_costs(blurred_HW3)
    # not a stable sort: which of equal edges comes first is NumPy's choice, as it is scikit-image's
    order_E = np.argsort(cost_E)
    label_P: NDArray[np.int64] = compiled_joining()(
        order_E, cost_E, height, width, settings.scale / 255.0, settings.min_size
    )
    return label_P.reshape(height, width)


def compiled_joining() -> Callable[..., Any]:
    """:func:`soco_ext.proposals.edge_joining.join_along_edges`.

    Raises:
        ConfigError: Numba is missing, or does not fit the installed NumPy.
    """
    try:
        from soco_ext.proposals.edge_joining import join_along_edges  # loading Numba takes a while
    except ImportError as error:
        raise ConfigError(
            f"selective search in the authors' form needs Numba: {error}",
            fix="pip install -U numba, or choose an OpenCV mode or random boxes",
        ) from error
    joining: Callable[..., Any] = join_along_edges
    return joining


def _edge_costs(image_HW3: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [E]: distance of colours, in the order of :mod:`soco_ext.proposals.edge_joining`."""
    ends = (
        (image_HW3[:, 1:], image_HW3[:, :-1]),
        (image_HW3[1:], image_HW3[:-1]),
        (image_HW3[1:, 1:], image_HW3[:-1, :-1]),
        (image_HW3[1:, :-1], image_HW3[:-1, 1:]),
    )
    costs = []
    for one, other in ends:
        square = one - other
        square *= square
        costs.append(np.sqrt(square.sum(axis=-1)).ravel())
    return np.concatenate(costs)
