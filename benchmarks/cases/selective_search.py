"""Selective search in the authors' form: one region at a time, or all regions at once and a heap.

``naive`` is the specification written down (benchmarks/plain_selective_search.py); it begins with
scikit-image's segmentation, as the authors do, and ours with the same labels found in less time. The sizes
``after segmentation`` leave both out. The table of all sources is ``python -m benchmarks.proposal_speed``.

Legend: T regions; rectangles x, y, width, height.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.plain_selective_search import plain_search, plain_segment
from soco_ext.proposals.segmentation import SearchSettings, segment
from soco_ext.proposals.selective_search import search_segments


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] with soft areas, edges and the noise of a photo."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (max(height // 60, 2), max(width // 60, 2), 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft).astype(np.int64)
    for _ in range(12):
        top, left = int(draw.integers(height)), int(draw.integers(width))
        tall, wide = int(draw.integers(1, height // 2)), int(draw.integers(1, width // 2))
        pixels[top : top + tall, left : left + wide] += draw.integers(-90, 91, 3)
    pixels += draw.integers(-6, 7, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def build(device: torch.device, *, height: int, width: int, segmented: bool) -> Problem:
    """One picture.

    Args:
        device: not used.
        height, width: of the picture, pixels.
        segmented: start from the segmentation.
    """
    image = picture(height, width, seed=0)
    settings = SearchSettings(min_size=min(100, height))
    ready = segment(image, settings)  # also compiles it

    def ours() -> Results:
        found = search_segments(image, ready if segmented else segment(image, settings))
        return _results(found.rects_T4, found.sizes_T)

    def naive() -> Results:
        label_HW = ready if segmented else plain_segment(image, settings)
        return _results(*plain_search(image, label_HW))

    return Problem({"ours": ours, "naive": naive})


def _results(rects_T4: object, sizes_T: object) -> Results:
    return {
        "rectangles_T4": torch.from_numpy(np.asarray(rects_T4, dtype=np.int64)),
        "sizes_T": torch.from_numpy(np.asarray(sizes_T, dtype=np.int64)),
    }


CASE = Case(
    name="selective_search",
    what="selective search in the authors' form: a region at a time, or all at once and a heap",
    variants=(
        Variant("375x500", partial(build, height=375, width=500, segmented=False), target=2),
        Variant(
            "375x500 after segmentation",
            partial(build, height=375, width=500, segmented=True),
            target=4,
        ),
    ),
    tiny=Variant("tiny", partial(build, height=60, width=80, segmented=True)),
    tolerance=0.0,
    most_repeats=10,
)
