"""Size of a file of proposals for all of ImageNet, and what opening it and finding an image in it take.

    python -m benchmarks.proposal_file --images 1281167 --boxes 40

Boxes are random whole numbers; names have ImageNet's form. Times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ext_common.data.box_file import ImageBoxes
from soco_ext.proposals.proposal_file import open_proposals, write_proposals

REPEATS = 200
CLASSES = 1000


@dataclass(frozen=True)
class FileCost:
    """What a file costs.

    Args:
        size: bytes.
        write: seconds to write it, from the boxes in memory.
        open: seconds to open it, as each loader worker does.
        look_up: seconds to find one image by its name and read its boxes.
    """

    size: int
    write: float
    open: float
    look_up: float


def name_of(number: int) -> str:
    """Relative path of one image."""
    return f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number // CLASSES}.JPEG"


def images(count: int, boxes: int) -> Iterator[ImageBoxes]:
    """Images of 375 x 500 pixels with boxes."""
    draw = np.random.default_rng(0)
    corners_B4 = draw.integers(0, 375, (CLASSES * boxes, 4), dtype=np.uint16)
    for number in range(count):
        first = number % CLASSES * boxes
        yield ImageBoxes(name_of(number), (375, 500), corners_B4[first : first + boxes])


def measure(path: Path, count: int, boxes: int) -> FileCost:
    """Write a file and use it."""
    begin = time.process_time()
    write_proposals(path, images(count, boxes), {})
    write = time.process_time() - begin
    file = open_proposals(path)
    wanted = [name_of(n) for n in np.random.default_rng(1).integers(0, count, REPEATS).tolist()]

    def look_up(repeat: int) -> None:
        place = file.find(wanted[repeat])
        if place is None or len(file.boxes(place)) != boxes:
            raise AssertionError(wanted[repeat])

    opening = _median_seconds(lambda _: open_proposals(path))
    return FileCost(path.stat().st_size, write, opening, _median_seconds(look_up))


def _median_seconds(work: Callable[[int], object]) -> float:
    seconds = []
    for repeat in range(REPEATS):
        begin = time.process_time()
        work(repeat)
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def main(words: list[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_281_167, metavar="N")
    parser.add_argument("--boxes", type=int, default=40, metavar="K", help="of each image")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="proposals-") as folder:
        cost = measure(Path(folder) / "boxes", args.images, args.boxes)
    print(
        f"{args.images:,} images with {args.boxes} boxes each: {cost.size / 1e6:,.1f} MB, "
        f"written in {cost.write:.1f} s, opened in {cost.open * 1e3:.2f} ms, "
        f"an image found and read in {cost.look_up * 1e6:.0f} us"
    )


if __name__ == "__main__":
    main()
