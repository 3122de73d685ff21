"""Pairs of an image and its captions: what every source of pretraining data gives.

Legend: N pairs.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np

from regionclip_ext.data.caption_text import Captions


@dataclass(frozen=True)
class Pair:
    """One image and its captions.

    Args:
        key: names the image; unique in its source, and behind the name of the source
            (:meth:`PairRecords.read`) in all sources.
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

    @property
    def pictures(self) -> Path:
        """The file or folder that holds the pictures; their keys name them in it."""

    def __len__(self) -> int: ...

    def keys(self) -> Iterator[str]:
        """The keys of all pairs in order, without reading images."""

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

    Keys of different sources are often equal (``0001.png`` in every archive), so a pair that is
    read here has ``SOURCE:KEY`` for a key, see :func:`source_labels`.

    Args:
        sources: in the order of the numbering.
    """

    def __init__(self, sources: Sequence[PairSource]) -> None:
        self.sources = tuple(sources)
        self._labels = source_labels([source.pictures for source in self.sources])
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.sources else 0

    def __getitem__(self, place: Any) -> Any:
        """One record."""
        number, inside = self._locate(place)
        return {"image_id": place, "source": self.sources[number].name, "pair": inside}

    def read(self, place: int) -> Pair:
        """The pair of a record; its key names the source too."""
        number, inside = self._locate(place)
        pair = self.sources[number].pair(inside)
        return replace(pair, key=f"{self._labels[number]}:{pair.key}")

    def keys(self) -> Iterator[str]:
        """The keys of all pairs in order, as :meth:`read` gives them; no image is read."""
        for label, source in zip(self._labels, self.sources, strict=True):
            for key in source.keys():  # noqa: SIM118 - no mapping
                yield f"{label}:{key}"

    def _locate(self, place: int) -> tuple[int, int]:
        place = range(len(self))[place]
        number = int(np.searchsorted(self._ends, place, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return number, place - start


def source_labels(places: Sequence[Path]) -> list[str]:
    """A name for each file or folder of pictures that is the same on another machine.

    This is its last part (``00000.tar``). Where different places share it, as many of their folders
    come before it as tell them apart (``cc3m/00000.tar``). The same place has the same name however
    often it is given. Colons are written ``%3A``, so that the first one of a key ends the name.

    Args:
        places: need not be different.
    """
    # links are not followed: what they lead to is called otherwise on every machine
    parts = {place: PurePath(os.path.abspath(place)).parts for place in places}
    lengths = dict.fromkeys(parts.values(), 1)
    while True:
        groups: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for whole, length in lengths.items():
            groups[whole[-length:]].append(whole)
        shared = [whole for group in groups.values() if len(group) > 1 for whole in group]
        if not shared:
            break
        for whole in shared:
            lengths[whole] += 1
    return [_label(parts[place][-lengths[parts[place]] :]) for place in places]


def _label(parts: Sequence[str]) -> str:
    return PurePath(*parts).as_posix().replace("%", "%25").replace(":", "%3A")
