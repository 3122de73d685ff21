"""The two kinds of pictures: scenes with several objects, and label pictures about one object.

A picture depends on its own random generator only (:func:`picture_rng`): any picture can be made
alone, in any order or process, and comes out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .backgrounds import random_background
from .canvas import Canvas, Visible
from .classes import DemoClass
from .sprites import random_sprite

# sizes as shares of the picture's shorter side
SCENE_SIZES = (0.13, 0.5)
LABEL_SIZES = (0.45, 0.9)
DISTRACTOR_SIZES = (0.12, 0.22)

MAX_OBJECTS = 6
MIN_VISIBLE_OVERLAPPING = 0.4
MIN_VISIBLE_ALONE = 0.85
_OVERLAP_SHARE = 0.3
_DISTRACTOR_SHARE = 0.25
_TRIES = 12


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image_HW3: RGB uint8.
        objects: the visible objects, from the lowest to the topmost.
    """

    image_HW3: NDArray[np.uint8]
    objects: tuple[Visible, ...]


def picture_rng(seed: int, *place: int) -> np.random.Generator:
    """The generator of one picture, from the seed and the picture's place in the dataset."""
    return np.random.default_rng([seed, *place])


def random_scene(
    photographs: tuple[NDArray[np.uint8], ...],
    classes: Sequence[DemoClass],
    weights: Sequence[float],
    size: int,
    rng: np.random.Generator,
    *,
    validation: bool = False,
) -> Picture:
    """A square scene of one to six objects that may hide one another or leave the picture.

    Args:
        photographs: where backgrounds are cropped from.
        classes: which classes may appear.
        weights: how often each does, in any unit.
        size: side of the picture in pixels.
        rng: source of all randomness.
        validation: take the background from the validation part of the photographs.
    """
    canvas = Canvas(random_background(photographs, (size, size), rng, validation=validation))
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        kind = classes[int(rng.choice(len(classes), p=shares))]
        sprite = random_sprite(kind, size * _log_uniform(SCENE_SIZES, rng), rng)
        half_w, half_h = sprite.alpha_HW.shape[1] / 2, sprite.alpha_HW.shape[0] / 2
        for _ in range(_TRIES):
            overlapping = rng.random() < _OVERLAP_SHARE
            x, y = _random_centre(canvas, max(half_w, half_h), size, rng, beside=overlapping)
            min_visible = MIN_VISIBLE_OVERLAPPING if overlapping else MIN_VISIBLE_ALONE
            if canvas.paste(sprite, round(x - half_w), round(y - half_h), min_visible=min_visible):
                break
    return Picture(_photograph(canvas.image_HW3, rng), tuple(canvas.visible()))


def random_label_picture(
    photographs: tuple[NDArray[np.uint8], ...],
    kind: DemoClass,
    others: Sequence[DemoClass],
    size: int,
    rng: np.random.Generator,
) -> Picture:
    """A picture about one object, like ImageNet's: large, whole, near the middle.

    A quarter of them hold a second, small object that the label does not name.

    Args:
        photographs: where backgrounds are cropped from (their training part).
        kind: the class of the main object.
        others: the classes the small object is drawn from.
        size: longer side of the picture in pixels; the shorter is 80 to 100 percent of it.
        rng: source of all randomness.

    Returns:
        The picture; its last object is the main one.
    """
    short = int(round(size * rng.uniform(0.8, 1.0)))
    size_hw = (size, short) if rng.random() < 0.5 else (short, size)
    canvas = Canvas(random_background(photographs, size_hw, rng, validation=False))
    if rng.random() < _DISTRACTOR_SHARE:
        other = others[int(rng.integers(len(others)))]
        sprite = random_sprite(other, short * _log_uniform(DISTRACTOR_SIZES, rng), rng)
        room = np.array(size_hw) - sprite.alpha_HW.shape
        # in a corner, where the main object is least likely to hide it
        top, left = (np.where(rng.random(2) < 0.5, 0.04, 0.96) * room).astype(int)
        canvas.paste(sprite, int(left), int(top), min_visible=0.0)
    sprite = random_sprite(kind, short * rng.uniform(*LABEL_SIZES), rng)
    room = np.array(size_hw) - sprite.alpha_HW.shape
    top, left = np.round(room * (0.5 + rng.uniform(-0.35, 0.35, 2))).astype(int)
    if not canvas.paste(sprite, int(left), int(top), min_visible=0.0):
        # the main object would hide the small one: do without the small one
        canvas = Canvas(random_background(photographs, size_hw, rng, validation=False))
        canvas.paste(sprite, int(left), int(top), min_visible=0.0)
    return Picture(_photograph(canvas.image_HW3, rng), tuple(canvas.visible()))


def _log_uniform(limits: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _random_centre(
    canvas: Canvas, radius: float, size: int, rng: np.random.Generator, *, beside: bool
) -> tuple[float, float]:
    """Anywhere (up to a quarter of the object outside), or partly over an object that is there."""
    present = canvas.extents() if beside else []
    if present:
        x, y, diameter = present[int(rng.integers(len(present)))]
        distance = rng.uniform(0.45, 0.9) * (radius + diameter / 2)
        angle = rng.uniform(0, 2 * np.pi)
        return x + distance * np.cos(angle), y + distance * np.sin(angle)
    low, high = radius * 0.6, size - radius * 0.6
    return float(rng.uniform(low, high)), float(rng.uniform(low, high))


def _photograph(image_HW3: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera adds: exposure, contrast, a colour cast, sometimes blur, and noise."""
    mean = image_HW3.mean()
    image_HW3 = (image_HW3 - mean) * rng.uniform(0.8, 1.15) + mean
    image_HW3 = image_HW3 * rng.uniform(0.75, 1.2) * rng.uniform(0.94, 1.06, 3)
    if rng.random() < 0.25:
        image_HW3 = cv2.GaussianBlur(image_HW3, (0, 0), rng.uniform(0.4, 0.9))
    noise_HW3 = rng.standard_normal(image_HW3.shape, dtype=np.float32)
    image_HW3 = image_HW3 + rng.uniform(0.0, 0.035) * noise_HW3
    return np.round(np.clip(image_HW3, 0.0, 1.0) * 255).astype(np.uint8)
