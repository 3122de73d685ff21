"""Which samples come when: endless streams that are pure functions of (seed, position).

Element ``p`` of a stream does not depend on how the stream was read before, on loader workers or on
the number of processes, so that a run continues anywhere. Streams are cut in chunks, and each chunk
is drawn from a generator that is seeded with (seed, number of the chunk).

Legend: N dataset items; ``weights_N``, ``factors_N`` float64.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.label_table import LabelTable
from ext_common.errors import DatasetError

_STREAM = 0  # first word of every key: keeps these draws apart from those of augmentation
_DRAWS_PER_CHUNK = 1 << 14


class IndexStream(ABC):
    """An endless sequence of indices 0..size-1.

    Args:
        size: number of dataset items.
        seed: not negative; the same in all processes.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size <= 0:
            raise DatasetError("there are no samples", fix="check the training datasets")
        self.size = size
        self.seed = seed

    @abstractmethod
    def chunk(self, number: int) -> NDArray[np.int64]:
        """The indices of chunk ``number`` (0, 1, ...)."""

    @abstractmethod
    def locate(self, position: int) -> tuple[int, int]:
        """(number of the chunk, place in the chunk) of an element."""

    def indices(self, start: int = 0) -> Iterator[int]:
        """Elements ``start``, ``start + 1``, ... of the sequence."""
        first, offset = self.locate(start)
        for number in count(first):
            yield from self.chunk(number)[offset:].tolist()
            offset = 0

    def reseeded(self, seed: int) -> IndexStream:
        """The same kind of stream with another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng((_STREAM, self.seed, number))


class PermutationStream(IndexStream):
    """Every item once per chunk, in a new random order each time (``TrainingSampler``)."""

    def chunk(self, number: int) -> NDArray[np.int64]:
        """A permutation of all items."""
        return self._generator(number).permutation(self.size)

    def locate(self, position: int) -> tuple[int, int]:
        """Chunks are ``size`` long."""
        return divmod(position, self.size)


class RepeatFactorStream(IndexStream):
    """Item i about ``factors_N[i]`` times per chunk (``RepeatFactorTrainingSampler``).

    A factor of 2.3 is 2 repeats, and with a chance of 0.3 another one, drawn anew for each chunk
    (LVIS paper, appendix B.2).

    Args:
        factors_N: expected repeats, finite and not negative, not all 0.
        seed: see :class:`IndexStream`.
    """

    def __init__(self, factors_N: Sequence[float] | NDArray[np.floating[Any]], seed: int) -> None:
        factors = _checked(factors_N, "repeat factors")
        super().__init__(len(factors), seed)
        self._whole_N = np.floor(factors).astype(np.int64)
        self._rest_N = factors - self._whole_N

    def chunk(self, number: int) -> NDArray[np.int64]:
        """All items with their repeats, shuffled."""
        generator = self._generator(number)
        return generator.permutation(np.repeat(np.arange(self.size), self._repeats(generator)))

    def locate(self, position: int) -> tuple[int, int]:
        """Chunks differ in length, so the lengths before are counted (not the orders)."""
        for number in count():
            length = int(self._repeats(self._generator(number)).sum())
            if position < length:
                return number, position
            position -= length
        raise AssertionError("count() is endless")

    def _repeats(self, generator: np.random.Generator) -> NDArray[np.int64]:
        return self._whole_N + (generator.random(self.size) < self._rest_N)


class WeightedStream(IndexStream):
    """Independent draws with replacement, item i with a chance proportional to ``weights_N[i]``.

    By inversion of the cumulated weights, which has no limit on N (``torch.multinomial`` ends at
    2^24 items).

    Args:
        weights_N: finite and not negative, not all 0.
        seed: see :class:`IndexStream`.
    """

    def __init__(self, weights_N: Sequence[float] | NDArray[np.floating[Any]], seed: int) -> None:
        weights = _checked(weights_N, "sampling weights")
        super().__init__(len(weights), seed)
        self._upto_N = np.cumsum(weights)
        self._last = int(np.flatnonzero(weights)[-1])

    def chunk(self, number: int) -> NDArray[np.int64]:
        """A fixed number of draws."""
        draws = self._generator(number).random(_DRAWS_PER_CHUNK) * self._upto_N[-1]
        found = np.searchsorted(self._upto_N, draws, side="right")
        # a draw just below 1 may be rounded to the sum itself
        return np.minimum(found, self._last)

    def locate(self, position: int) -> tuple[int, int]:
        """Chunks have one length."""
        return divmod(position, _DRAWS_PER_CHUNK)


def repeat_factors(
    labels: LabelTable | Iterable[Iterable[int]], threshold: float, *, root: bool = True
) -> NDArray[np.float64]:
    """How often an image should be shown so that rare classes are seen (LVIS paper, appendix B.2).

    With ``f_c`` = share of images that show class c, class factors are
    ``max(1, sqrt(threshold / f_c))`` and an image's factor is the largest of its classes.

    Args:
        labels: per image the ids of its classes, repeats allowed (:func:`box_labels`,
            :func:`tag_labels`).
        threshold: classes that are rarer are repeated (``DATALOADER.REPEAT_THRESHOLD``).
        root: take the square root (detectron2 main's ``DATALOADER.REPEAT_SQRT``).

    Returns:
        float64 [N], each at least 1; 1 for an image without labels.
    """
    table = labels if isinstance(labels, LabelTable) else LabelTable.of(labels)
    factors_N = np.ones(len(table), dtype=np.float64)
    if not len(table.values_L):
        return factors_N
    ids_C, class_L = np.unique(table.values_L, return_inverse=True)
    owners_L = table.owners_L
    # one number per pair of image and class; its repeats are counted once
    pairs = np.unique(owners_L * len(ids_C) + class_L)
    images_C = np.bincount(pairs % len(ids_C), minlength=len(ids_C))
    ratio_C = threshold * len(table) / images_C
    factor_C = np.maximum(1.0, np.sqrt(ratio_C) if root else ratio_C)
    np.maximum.at(factors_N, owners_L, factor_C[class_L])
    return factors_N


def box_labels(record: Mapping[str, Any]) -> list[int]:
    """Class ids of a record's annotations."""
    return [annotation["category_id"] for annotation in record.get("annotations", ())]


def tag_labels(record: Mapping[str, Any]) -> list[int]:
    """Class ids of a record's image labels."""
    return list(record.get("pos_category_ids", ()))


def _checked(values: Sequence[float] | NDArray[np.floating[Any]], what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    total = float(array.sum()) if array.size else 0.0
    if array.ndim != 1 or not math.isfinite(total) or (array < 0).any() or total <= 0:
        raise DatasetError(
            f"{what} must be finite, not negative and not all 0 (their sum is {total})",
            fix="check the dataset ratios and that no dataset is empty",
        )
    return array
