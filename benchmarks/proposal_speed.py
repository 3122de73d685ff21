"""Images per second and core of every source of proposals, and what a second core adds.

    python -m benchmarks.proposal_speed --images 16

Pictures of 375 x 500 pixels in PNG files, through the code of ``prepare_data.py soco-proposals``. Seconds
per core are CPU time of this process; the scaling is wall time with one and with two workers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from benchmarks.cases.selective_search import picture
from ext_common.data.unlabelled_images import images_of_folder
from soco_ext.proposals.filtering import PUBLISHED_STRATEGY, BoxFilter
from soco_ext.proposals.finders import AuthorsSearch, Finder, OpenCVSearch, RandomFinder
from soco_ext.proposals.generation import Outcome, Request, find_proposals

IMAGENET = 1_281_167


def finders() -> list[Finder]:
    """What is measured."""
    modes = [OpenCVSearch(mode) for mode in ("single", "fast", "quality")]
    return [AuthorsSearch(), *modes, RandomFinder()]


def measure(finder: Finder, folder: Path, workers: int) -> tuple[float, float, Outcome]:
    """CPU seconds, wall seconds and outcome of all images of a folder."""
    request = Request(
        images_of_folder(folder), finder, BoxFilter.parse(PUBLISHED_STRATEGY), workers=workers
    )
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = find_proposals(request, folder / "boxes")
    return time.process_time() - cpu, time.perf_counter() - wall, outcome


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--no-scaling", action="store_true", help="one core only")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="proposals-") as name:
        folder = Path(name)
        for number in range(args.images):
            Image.fromarray(picture(375, 500, number)).save(folder / f"{number}.png")
        for finder in finders():
            seconds, _, outcome = measure(finder, folder, 0)
            speed = args.images / seconds
            row = [finder.name, f"{speed:.2f}", f"{outcome.boxes / args.images:.1f}"]
            row.append(f"{IMAGENET / speed / 3600:.0f}")
            if not args.no_scaling:
                one, two = (measure(finder, folder, workers)[1] for workers in (1, 2))
                row.append(f"{one / two:.2f}")
            rows.append(row)
    heads = ["source", "images / s / core", "boxes kept", "core hours, ImageNet", "two cores"]
    print(tabulate(rows, heads[: len(rows[0])]))


if __name__ == "__main__":
    main()
