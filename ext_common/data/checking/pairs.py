"""Can every image-text pair of a pretraining set be read?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ext_common.data import problem_kinds as kinds
from ext_common.data.checking.image_files import ImageToCheck, Problem, check_files
from ext_common.data.findings import Findings
from ext_common.data.progress import Progress
from ext_common.images import DEFAULT_MAX_PIXELS


class PairToCheck(Protocol):
    """An image with its captions, which were checked when it was read."""

    @property
    def image(self) -> bytes | Path:
        """The content of an image file, or its path."""

    @property
    def where(self) -> str:
        """What messages call it."""


class NumberedPairs(Protocol):
    """Pairs by number; can be pickled."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> PairToCheck:
        """One pair; DatasetError or ImageError where it is none."""


@dataclass(frozen=True)
class PairImages:
    """Pairs as :func:`check_files` asks for them.

    Args:
        pairs: all of them.
    """

    pairs: NumberedPairs

    def missing(self, images: Sequence[ImageToCheck]) -> list[Problem]:
        """None: what is missing is found when it is read."""
        return []

    def source(self, key: int) -> tuple[bytes | Path, str]:
        """The image of a pair, and what messages call it."""
        pair = self.pairs.read(key)
        return pair.image, pair.where


def check_pairs(
    pairs: NumberedPairs,
    *,
    decode: bool = False,
    processes: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> Findings:
    """Read every pair, and the header of its image.

    Args:
        pairs: all of them.
        decode: read every pixel.
        processes: how many work.
        max_pixels: images of more are unreadable.
        progress: told (pairs done, pairs in all).
    """
    findings = Findings()
    found = check_files(
        [ImageToCheck(place, place, place, 0, 0) for place in range(len(pairs))],
        PairImages(pairs),
        decode=decode,
        processes=processes,
        max_pixels=max_pixels,
        progress=progress,
    )
    for problem in sorted(found, key=lambda problem: problem.place):
        findings.add(kinds.PAIR_UNREADABLE, problem.text)
    return findings
