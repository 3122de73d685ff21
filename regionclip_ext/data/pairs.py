"""Pairs of an image and its captions: what every source of pretraining data gives.

Legend: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regionclip_ext.data.caption_text import Captions


@dataclass(frozen=True)
class Pair:
    """One image and its captions.

    Args:
        key: names the image; unique in its source.
        image: the content of an image file, or its path.
        captions: what is said about it.
        where: file and key, for messages.
    """

    key: str
    image: bytes | Path
    captions: Captions
    where: str


class PairSource(Protocol):
    """Numbered pairs. Objects can be pickled, and shared by forked loader workers."""

    @property
    def name(self) -> str:
        """The file or folder, for messages."""

    def __len__(self) -> int: ...

    def pair(self, place: int) -> Pair:
        """Read one pair.

        Raises:
            DatasetError, ImageError: what is stored there is no pair.
        """

    def captions(self) -> Iterator[str]:
        """All captions in order, without reading images."""


class PairRecords(Sequence[Mapping[str, Any]]):
    """The pairs of several sources in one numbering, as the loader's records.

    A record has ``image_id`` (its number), ``source`` (name) and ``pair`` (place in its source);
    the mapper reads the pair itself, in the worker.

    Args:
        sources: in the order of the numbering.
    """

    def __init__(self, sources: Sequence[PairSource]) -> None:
        self.sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.sources else 0

    def __getitem__(self, place: Any) -> Any:
        """One record."""
        number, inside = self._locate(place)
        return {"image_id": place, "source": self.sources[number].name, "pair": inside}

    def read(self, place: int) -> Pair:
        """The pair of a record."""
        number, inside = self._locate(place)
        return self.sources[number].pair(inside)

    def _locate(self, place: int) -> tuple[int, int]:
        place = range(len(self))[place]
        number = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return number, place - start
