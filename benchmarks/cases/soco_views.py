"""SoCo's samples from a decoded picture: ours, or torchvision's transforms one after the other.

Both get the same random numbers and have to give the same pixels and boxes. The shares of decoding,
resizing and colour are ``python -m benchmarks.view_shares``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from benchmarks.case import Case, Problem, Results, Variant
from benchmarks.cases.selective_search import picture
from soco_ext.data.colour import PIXEL_MEAN, PIXEL_STD, change_colours
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_options import ViewOptions

PICTURES = 8
PROPOSALS = 30


def proposals(height: int, width: int) -> np.ndarray:
    """int64 [30, 4] boxes of a picture."""
    draw = np.random.default_rng(1)
    low = draw.integers(0, [width * 2 // 3, height * 2 // 3], (PROPOSALS, 2))
    size = draw.integers([width // 6, height // 6], [width // 3, height // 3], (PROPOSALS, 2))
    return np.concatenate([low, low + size - 1], axis=1)


def build(device: torch.device, *, height: int, width: int, options: ViewOptions) -> Problem:
    """Some pictures with proposals.

    Args:
        device: not used.
        height, width: of the pictures, pixels.
        options: of the views.
    """
    pictures = [picture(height, width, seed) for seed in range(PICTURES)]
    boxes_K4 = proposals(height, width)
    maker = ViewMaker(options)

    def ours() -> Results:
        return _results([maker(image, boxes_K4, _draws(n)) for n, image in enumerate(pictures)])

    def naive() -> Results:
        return _results([_plain(maker, i, boxes_K4, _draws(n)) for n, i in enumerate(pictures)])

    return Problem({"ours": ours, "naive": naive})


def _draws(number: int) -> GeneratorDraws:
    return GeneratorDraws(np.random.default_rng(number))


def _plain(
    maker: ViewMaker, image_HW3: np.ndarray, boxes_K4: np.ndarray, draws: GeneratorDraws
) -> dict[str, Any]:
    """The same sample with torchvision's functions for the pixels."""
    drawn = maker.draw_boxes((image_HW3.shape[0], image_HW3.shape[1]), boxes_K4, draws)
    flips = tuple(draws.uniform(0.0, 1.0) < view.flip for view in maker.plan.views)
    image = Image.fromarray(image_HW3)
    views: list[Tensor] = []
    for number, spec in enumerate(maker.plan.views):
        crop = drawn.crops[number]
        place = (crop.top, crop.left, crop.height, crop.width)
        view = F.resized_crop(image, *place, [spec.size, spec.size])
        view = F.hflip(view) if flips[number] else view
        pixels = F.to_tensor(change_colours(view, spec.colour, draws))
        views.append(F.normalize(pixels, list(PIXEL_MEAN), list(PIXEL_STD)))
    return {"views": views, "pairs": maker.pairs(drawn, flips)}


def _results(samples: list[dict[str, Any]]) -> Results:
    views = {
        f"view {number + 1}": torch.stack([sample["views"][number] for sample in samples])
        for number in range(len(samples[0]["views"]))
    }
    pairs = [pair for sample in samples for pair in sample["pairs"]]
    return {**views, "boxes": torch.stack([boxes for pair in pairs for boxes in pair["boxes"]])}


CASE = Case(
    name="soco_views",
    what=f"views and boxes of {PICTURES} decoded pictures: ours, or torchvision's transforms",
    variants=(
        Variant("3 views", partial(build, height=375, width=500, options=ViewOptions())),
        Variant(
            "4 views",
            partial(build, height=375, width=500, options=ViewOptions(plan="star_4view")),
        ),
    ),
    tiny=Variant("tiny", partial(build, height=60, width=80, options=ViewOptions(image_size=16))),
)
