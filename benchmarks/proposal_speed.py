"""Images per second and core of every source of proposals, and what a second core adds.

    python -m benchmarks.proposal_speed --images 24

Pictures of 375 x 500 pixels in PNG files, through the code of ``prepare_data.py soco-proposals``; OpenCV's
slow mode gets a quarter of them. ``images / s / core`` is by CPU time of one process without workers.
The scaling is one worker against two, in two ways: by wall time, which means something only while both
cores are free (the load is printed), and by CPU time: what the same pictures cost in all processes, twice
that of one worker over that of two. The second is what remains to two free cores after the costs of
sharing (memory, caches, the process that collects); other programs disturb it little.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from benchmarks.cases.selective_search import picture
from ext_common.data.unlabelled_images import images_of_folder
from soco_ext.proposals.filtering import PUBLISHED_STRATEGY, BoxFilter
from soco_ext.proposals.finders import AuthorsSearch, Finder, OpenCVSearch, RandomFinder
from soco_ext.proposals.generation import Request, find_proposals

IMAGENET = 1_281_167
SLOW = 4  # times fewer pictures


@dataclass(frozen=True)
class Cost:
    """What a run took.

    Args:
        cpu: seconds of all its processes.
        wall: seconds on the clock.
        boxes: found.
    """

    cpu: float
    wall: float
    boxes: int


def finders() -> list[tuple[Finder, int]]:
    """What is measured, and by what the number of pictures is divided."""
    quick: list[Finder] = [AuthorsSearch(), OpenCVSearch("single"), OpenCVSearch("fast")]
    return [
        *((finder, 1) for finder in quick),
        (OpenCVSearch("quality"), SLOW),
        (RandomFinder(), 1),
    ]


def measure(finder: Finder, folder: Path, workers: int) -> Cost:
    """One run over all images of a folder."""
    request = Request(
        images_of_folder(folder), finder, BoxFilter.parse(PUBLISHED_STRATEGY), workers=workers
    )
    wall, cpu = time.perf_counter(), _cpu_seconds()
    outcome = find_proposals(request, folder / "boxes")
    return Cost(_cpu_seconds() - cpu, time.perf_counter() - wall, outcome.boxes)


def row_of(finder: Finder, folder: Path, count: int, *, scaling: bool) -> list[str]:
    """One line of the table."""
    if finder.needs_pixels:  # load and compile: a second once, not per picture
        finder("warm-up", (375, 500), picture(375, 500, 0))
    alone = measure(finder, folder, 0)
    speed = count / alone.cpu
    row = [finder.name, f"{speed:.2f}", f"{alone.boxes / count:.1f}"]
    row.append(f"{IMAGENET / speed / 3600:.0f}")
    if scaling and not finder.needs_pixels:
        row += ["-"] * 4  # starting the workers would be all of it
    elif scaling:
        one, two = (measure(finder, folder, workers) for workers in (1, 2))
        row += [f"{cost.wall:.2f} / {cost.cpu:.2f}" for cost in (one, two)]
        row += [f"{one.wall / two.wall:.2f}", f"{2 * one.cpu / two.cpu:.2f}"]
    return row


def write_pictures(folder: Path, count: int) -> Path:
    """A folder of pictures."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(picture(375, 500, number)).save(folder / f"{number}.png")
    return folder


def _cpu_seconds() -> float:
    """Of this process and of the workers that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24, metavar="N", help="default: 24")
    parser.add_argument("--no-scaling", action="store_true", help="one process only")
    args = parser.parse_args(words)
    rows = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="proposals-") as name:
        for finder, fewer in finders():
            count = max(args.images // fewer, 1)
            folder = Path(name) / str(count)
            if not folder.exists():
                write_pictures(folder, count)
            rows.append(row_of(finder, folder, count, scaling=not args.no_scaling))
    heads = ["source", "images / s / core", "boxes kept", "core hours, ImageNet"]
    heads += ["1 worker, s wall / CPU", "2 workers", "scaling by wall", "by CPU"]
    print(tabulate(rows, heads[: len(rows[0])], disable_numparse=True))
    print(
        f"\n{os.cpu_count()} cores, of which {len(os.sched_getaffinity(0))} may be used; "
        f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


if __name__ == "__main__":
    main()
