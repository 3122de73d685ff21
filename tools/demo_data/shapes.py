"""Outlines of the objects as polygons.

Shapes: ``points_P2`` (x, y) float64. Unit outlines lie in the box [-0.5, 0.5] about the origin, y
pointing down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

MAX_TURN_DEGREES = 30.0
MAX_STRETCH = 1.2
MAX_SHEAR = 0.12


def _on_circle(radius: float | Points, count: int, start_degrees: float = -90.0) -> Points:
    angles = np.deg2rad(start_degrees) + 2 * np.pi * np.arange(count) / count
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _square() -> tuple[Points, ...]:
    return (_on_circle(0.62, 4, start_degrees=45.0),)


def _disc() -> tuple[Points, ...]:
    return (_on_circle(0.5, 48),)


def _triangle() -> tuple[Points, ...]:
    return (_on_circle(0.6, 3) + np.array([0.0, 0.12]),)


def _star() -> tuple[Points, ...]:
    return (_on_circle(np.where(np.arange(10) % 2 == 0, 0.56, 0.23), 10),)


def _ring() -> tuple[Points, ...]:
    return (_on_circle(0.5, 48), _on_circle(0.26, 36))


def _cross() -> tuple[Points, ...]:
    arm, half = 0.5, 0.17
    corner = np.array([[-half, -arm], [half, -arm], [half, -half]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # row vectors, a quarter turn
    quarters = [corner]
    for _ in range(3):
        quarters.append(quarters[-1] @ turn)
    return (np.concatenate(quarters),)


OUTLINES: Mapping[str, Callable[[], tuple[Points, ...]]] = MappingProxyType(
    {
        "square": _square,
        "disc": _disc,
        "triangle": _triangle,
        "star": _star,
        "ring": _ring,
        "cross": _cross,
    }
)


def random_outline(shape: str, size: float, rng: np.random.Generator) -> tuple[Points, ...]:
    """The outline of one object: turned, stretched and sheared at random.

    Args:
        shape: a key of :data:`OUTLINES`.
        size: side of the unit box in pixels.
        rng: source of all randomness.

    Returns:
        Polygons ``points_P2`` in pixels about the origin. A second polygon is a hole.
    """
    turn = np.deg2rad(rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES))
    stretch = np.exp(rng.uniform(-np.log(MAX_STRETCH), np.log(MAX_STRETCH)) / 2)
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix = np.array([[stretch, 0.0], [shear, 1.0 / stretch]]) @ rotation * size
    return tuple(points_P2 @ matrix for points_P2 in OUTLINES[shape]())
