"""Reading the samples of a plan: own random numbers for each, and a policy for bad ones."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ext_common.data.batching import Ticket
from ext_common.data.read_watch import ReadWatch
from ext_common.errors import DatasetError, ExtError
from ext_common.images import BadSamplePolicy, printable

Sample = dict[str, Any]
Mapper = Callable[[Mapping[str, Any]], Sample]

_AUGMENTATION = 1  # first word of every key: keeps these draws apart from those of sampling


@contextmanager
def own_randomness(seed: int, position: int, attempt: int = 0) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) global generators seeded for one sample.

    Augmentations draw from the global generators. Seeded by the sample's position, they do the same
    in the main process and in any loader worker; afterwards the generators go on as if nothing had
    been drawn. Inside, NumPy's legacy generator runs on PCG64 and cannot be seeded again.
    """
    key = np.random.SeedSequence((_AUGMENTATION, seed, position, attempt))
    words = key.generate_state(4)
    # exchanging NumPy's generator costs a twentieth of copying its state out and in
    numpys = mtrand.get_bit_generator()  # detectron2 draws from this one
    pythons, torchs = random.getstate(), torch.get_rng_state()
    try:
        mtrand.set_bit_generator(np.random.PCG64(key))
        random.seed(words.tobytes())
        # not torch.manual_seed, which would seed the GPU's generators as well
        torch.default_generator.manual_seed(int(words[0]))
        yield
    finally:
        mtrand.set_bit_generator(numpys)
        random.setstate(pythons)
        torch.set_rng_state(torchs)


class SampleFetcher(Dataset[Sample | ExtError]):
    """Dataset whose keys are tickets.

    A bad sample (ImageError or DatasetError of the mapper) is replaced by the next readable one of
    its group, so that the replacement is the same in every run and a batch keeps one kind; the
    policy counts it, or raises.

    Args:
        records: dataset dicts by index; see ``records.serialised``.
        mapper: makes a sample of a dataset dict.
        seed: seed of augmentation.
        groups_N: group of every record; None = all alike.
        policy: what to do with bad samples.

    Attributes:
        watch: which record is being read.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]] | Dataset[Any],
        mapper: Mapper,
        *,
        seed: int,
        groups_N: NDArray[np.integer[Any]] | None = None,
        policy: BadSamplePolicy | None = None,
    ) -> None:
        self.records: Any = records
        self.mapper = mapper
        self.seed = seed
        self.groups_N = groups_N
        self.policy = policy or BadSamplePolicy("raise")
        self.watch = ReadWatch()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, ticket: Ticket) -> Sample | ExtError:
        """The sample; an error is returned, not raised, so that it reaches the user whole."""
        try:
            return self._first_good(ticket)
        except ExtError as error:
            return error

    def _first_good(self, ticket: Ticket) -> Sample:
        for attempt, index in enumerate(self._candidates(ticket.record)):
            with self.watch.reading(index), own_randomness(self.seed, ticket.position, attempt):
                record = self.records[index]
                load = functools.partial(self.mapper, record)
                sample = self.policy.attempt(_name(record, index), load)
            if sample is not None:
                return sample
        raise DatasetError("none of the samples can be read", where=_name(record, index))

    def name(self, index: int) -> str:
        """What messages call a record: its file, else its image id."""
        return _name(self.records[index], index)

    def _candidates(self, index: int) -> Iterator[int]:
        """The index, then the others of its group in order, round to the beginning."""
        yield index
        if self.groups_N is None:
            members = np.arange(len(self))
        else:
            members = np.flatnonzero(self.groups_N == self.groups_N[index])
        place = int(np.searchsorted(members, index))
        yield from members[place + 1 :].tolist()
        yield from members[:place].tolist()


def _name(record: Mapping[str, Any], index: int) -> str:
    if record.get("file_name"):
        return printable(str(record["file_name"]))
    image = f"image {record.get('image_id', index)}"
    return f"{image} (tar_index {record['tar_index']})" if "tar_index" in record else image


def as_list(items: list[Any]) -> list[Any]:
    """Collation of a detection batch: none."""
    return items


def raise_errors(batches: Iterable[list[Sample | ExtError]]) -> Iterator[list[Sample]]:
    """Batches of a :class:`SampleFetcher`; its errors are raised here, in the main process."""
    for batch in batches:
        samples: list[Sample] = []
        for item in batch:
            if isinstance(item, ExtError):
                raise item
            samples.append(item)
        yield samples
