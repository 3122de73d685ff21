"""Views per second and core of SoCo's loader, and where the time goes.

    python -m benchmarks.view_shares --images 16 --rounds 5

JPEG pictures of 375 x 500 pixels; the times are CPU time of this process, one thread.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps
from tabulate import tabulate

from benchmarks.cases.selective_search import picture
from benchmarks.cases.soco_views import proposals
from ext_common.images import read_image
from soco_ext.data.colour import change_colours, to_array
from soco_ext.data.crops import resized_crop
from soco_ext.data.draws import GeneratorDraws
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_options import PLANS, ViewOptions


class Stages:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of a block."""
        start = time.process_time()
        yield
        spent = time.process_time() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent


def run(maker: ViewMaker, files: list[bytes], draws: GeneratorDraws, stage: Stages) -> int:
    """The steps of ``ViewMaker`` one by one; returns the number of views."""
    made = 0
    boxes_K4 = proposals(375, 500)
    for content in files:
        with stage("decoding"):
            image_HW3 = read_image(content, format="RGB")
        with stage("boxes"):
            drawn = maker.draw_boxes((375, 500), boxes_K4, draws)
            flips = tuple(draws.uniform(0.0, 1.0) < view.flip for view in maker.plan.views)
            maker.pairs(drawn, flips)
        image = Image.fromarray(image_HW3)
        for number, spec in enumerate(maker.plan.views):
            with stage("crop, resize, flip"):
                view = resized_crop(image, drawn.crops[number], spec.size)
                view = ImageOps.mirror(view) if flips[number] else view
            with stage("colour"):
                view = change_colours(view, spec.colour, draws)
            with stage("to array"):
                to_array(view)
            made += 1
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    files = []
    for number in range(args.images):
        stream = io.BytesIO()
        Image.fromarray(picture(375, 500, number)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    rows = []
    for plan in PLANS:
        maker, stage = ViewMaker(ViewOptions(plan=plan)), Stages()
        draws = GeneratorDraws(np.random.default_rng(0))
        run(maker, files[:2], draws, Stages())
        views = sum(run(maker, files, draws, stage) for _ in range(args.rounds))
        total = sum(stage.seconds.values())
        shares = [f"{seconds / total:.0%}" for seconds in stage.seconds.values()]
        images = args.images * args.rounds
        rows.append([plan, f"{views / total:.0f}", f"{images / total:.0f}", *shares])
    print(tabulate(rows, ["plan", "views / s", "images / s", *stage.seconds]))


if __name__ == "__main__":
    main()
