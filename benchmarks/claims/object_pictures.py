"""Pictures of single objects in many classes: a classification set of the demo's world.

    python -m benchmarks.claims.object_pictures --output pictures.npz --train 160 --test 20

Six shapes in six surfaces are 36 classes; the twelve of the demo's scenes are among them. The
objects are the demo's own; a red one is given another hue for the surfaces that the demo lacks.

Shapes: N pictures, H and W rows and columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ext_common.atomic_file import writing
from ext_common.errors import DatasetError
from tools.demo_data.backgrounds import load_photographs
from tools.demo_data.classes import CLASSES, DemoClass
from tools.demo_data.pictures import Picture, picture_rng, random_label_picture
from tools.demo_data.shapes import OUTLINES

SIDE = 64
# surface -> the demo's surface, and degrees by which its hue is turned
SURFACES = {
    "striped": ("striped", 0),
    "red": ("red", 0),
    "yellow": ("red", 60),
    "green": ("red", 120),
    "blue": ("red", 220),
    "purple": ("red", 290),
}
CLASS_NAMES = tuple(f"{surface} {shape}" for shape in OUTLINES for surface in SURFACES)


@dataclass(frozen=True)
class ObjectPictures:
    """A classification set.

    Attributes:
        train_NHW3, test_NHW3: RGB uint8 of :data:`SIDE` pixels.
        train_N, test_N: places in :data:`CLASS_NAMES`.
    """

    train_NHW3: NDArray[np.uint8]
    train_N: NDArray[np.int64]
    test_NHW3: NDArray[np.uint8]
    test_N: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> ObjectPictures:
        """Read what :meth:`write` has written.

        Raises:
            DatasetError: it is another file.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(**{name: stored[name] for name in cls.__annotations__})
        except (KeyError, ValueError) as error:
            raise DatasetError(f"no classification set: {error}", where=str(path)) from error

    def write(self, path: Path) -> None:
        """Save, compressed, so that no half file is ever seen."""
        with writing(path) as file:
            np.savez_compressed(file, **vars(self))


def render(train: int, test: int, seed: int = 0) -> ObjectPictures:
    """Draw the set; every picture is a function of the seed and its place alone.

    Args:
        train, test: pictures per class.
        seed: of all randomness.
    """
    photographs = load_photographs()
    pictures: dict[bool, list[NDArray[np.uint8]]] = {True: [], False: []}
    for number, name in enumerate(CLASS_NAMES):
        surface, shape = name.split()
        drawn, hue = SURFACES[surface]
        kind = DemoClass(number + 1, drawn, shape, False, 1.0, "f")
        for index in range(train + test):
            rng = picture_rng(seed, number, index)
            picture = random_label_picture(photographs, kind, CLASSES, SIDE, rng)
            image_HW3 = cv2.resize(_recoloured(picture, hue), (SIDE, SIDE))
            pictures[index < train].append(np.asarray(image_HW3, np.uint8))
    places = np.arange(len(CLASS_NAMES))
    return ObjectPictures(
        train_NHW3=np.stack(pictures[True]),
        train_N=np.repeat(places, train),
        test_NHW3=np.stack(pictures[False]),
        test_N=np.repeat(places, test),
    )


def _recoloured(picture: Picture, degrees: int) -> NDArray[np.uint8]:
    """The picture with another hue of its main object."""
    if not degrees:
        return picture.image_HW3
    hsv_HW3 = cv2.cvtColor(picture.image_HW3, cv2.COLOR_RGB2HSV)
    hsv_HW3[..., 0] = (hsv_HW3[..., 0].astype(np.int64) + degrees // 2) % 180  # OpenCV: 2 degrees
    turned_HW3 = cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)
    mask_HW1 = picture.objects[-1].mask_HW[..., None]
    return np.where(mask_HW1, turned_HW3, picture.image_HW3).astype(np.uint8)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--train", type=int, default=160, help="per class, default: 160")
    parser.add_argument("--test", type=int, default=20, help="per class, default: 20")
    args = parser.parse_args(words)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    render(args.train, args.test).write(args.output)
    print(f"{len(CLASS_NAMES)} classes: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
