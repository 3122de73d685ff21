"""Surfaces of the objects: colours and textures.

Shapes: ``colour_HW3`` RGB float32 in 0..1, not yet clipped.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Colours = NDArray[np.float32]

MIN_STRIPE_PIXELS = 4.5
# (hue, saturation, value) of the dark and the light stripe; none of them is red on light
_STRIPE_PAIRS = (
    ((0.62, 0.65, 0.30), (0.13, 0.70, 1.00)),  # navy, yellow
    ((0.00, 0.00, 0.12), (0.10, 0.05, 0.98)),  # black, white
    ((0.40, 0.85, 0.38), (0.15, 0.12, 0.98)),  # green, cream
)


def _rgb(hue: float, saturation: float, value: float) -> NDArray[np.float64]:
    saturation, value = (float(np.clip(x, 0.0, 1.0)) for x in (saturation, value))
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _red(shape_hw: tuple[int, int], size: float, rng: np.random.Generator) -> Colours:
    colour = _rgb(rng.uniform(-0.03, 0.02), rng.uniform(0.72, 0.95), rng.uniform(0.6, 0.98))
    return np.broadcast_to(colour.astype(np.float32), (*shape_hw, 3))


def _striped(shape_hw: tuple[int, int], size: float, rng: np.random.Generator) -> Colours:
    pair = _STRIPE_PAIRS[rng.integers(len(_STRIPE_PAIRS))]
    dark, light = (
        _rgb(h + rng.uniform(-0.03, 0.03), s, v + rng.uniform(-0.06, 0.06)) for h, s, v in pair
    )
    period = max(2 * MIN_STRIPE_PIXELS * rng.uniform(0.8, 1.1), size * rng.uniform(0.24, 0.36))
    angle = rng.uniform(0, np.pi)
    phase = rng.uniform(0, 2 * np.pi)
    y_H, x_W = np.arange(shape_hw[0])[:, None], np.arange(shape_hw[1])[None, :]
    along_HW = (x_W * np.cos(angle) + y_H * np.sin(angle)) * 2 * np.pi / period + phase
    # a steep sine clipped to 0..1: the edge between two stripes is about one pixel wide
    mix_HW = np.clip(0.5 + np.sin(along_HW) * period / (2 * np.pi), 0.0, 1.0)[..., None]
    return (dark + (light - dark) * mix_HW).astype(np.float32)


FILLS: Mapping[str, Callable[[tuple[int, int], float, np.random.Generator], Colours]] = (
    MappingProxyType({"red": _red, "striped": _striped})
)


def random_fill(
    attribute: str, shape_hw: tuple[int, int], size: float, rng: np.random.Generator
) -> Colours:
    """The surface of one object with grain and a soft light from one side.

    Args:
        attribute: a key of :data:`FILLS`.
        shape_hw: height and width of the patch in pixels.
        size: size of the object in pixels, which sets the width of its stripes.
        rng: source of all randomness.

    Returns:
        ``colour_HW3`` RGB float32, about 0..1.
    """
    colour_HW3 = FILLS[attribute](shape_hw, size, rng)
    height, width = shape_hw
    angle = rng.uniform(0, 2 * np.pi)
    y_H = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x_W = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    light_HW = 1.0 + rng.uniform(0.03, 0.2) * (x_W * np.cos(angle) + y_H * np.sin(angle))
    grain_HW = 1.0 + rng.uniform(0.0, 0.05) * rng.standard_normal(shape_hw, dtype=np.float32)
    return (colour_HW3 * (light_HW * grain_HW)[..., None]).astype(np.float32)
