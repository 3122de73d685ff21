"""The records of several datasets as one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from detectron2.data.common import DatasetFromList
from numpy.typing import NDArray

from ext_common.data.indexed_records import IndexedRecords
from ext_common.data.record_columns import RecordColumns, columns_of

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """The chosen records of one dataset.

    Args:
        records: all records of the dataset.
        source: number of the dataset, ``dataset_source`` of its records.
        places_M: which of them, ascending; None = all.
    """

    records: Any
    source: int
    places_M: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.records) if self.places_M is None else len(self.places_M)

    def __getitem__(self, place: int) -> Record:
        if self.places_M is not None:
            place = int(self.places_M[place])
        return {**self.records[place], "dataset_source": self.source}

    def columns(self) -> RecordColumns:
        """The columns of the chosen records."""
        columns = columns_of(self.records)
        return columns if self.places_M is None else columns.rows(self.places_M)


class TrainingRecords(Sequence[Record]):
    """Dataset dicts with ``dataset_source``, the datasets one after the other.

    Args:
        parts: one for each dataset.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        """A record, made new each time where its dataset is indexed or shared."""
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        place = range(len(self))[place]
        number = int(np.searchsorted(self._ends, place, side="right"))
        start = self._ends[number - 1] if number else 0
        return self.parts[number][place - start]

    @cached_property
    def columns(self) -> RecordColumns:
        """The columns of all records."""
        return RecordColumns.joined([part.columns() for part in self.parts])

    @property
    def sources_N(self) -> NDArray[np.int64]:
        """int64 [N]: number of the dataset of every record."""
        sources = [part.source for part in self.parts]
        return np.repeat(np.array(sources, dtype=np.int64), [len(part) for part in self.parts])

    def of_source(self, source: int) -> TrainingRecords:
        """The records of one dataset."""
        return TrainingRecords([part for part in self.parts if part.source == source])

    def shared(self) -> TrainingRecords:
        """The same with lists packed in one array each, which forked workers do not copy."""
        return TrainingRecords(
            [
                part
                if isinstance(part.records, IndexedRecords)
                else replace(part, records=packed(part.records))
                for part in self.parts
            ]
        )


def packed(records: Sequence[Mapping[str, Any]]) -> DatasetFromList:
    """A list as bytes in one array, which forked loader workers share instead of copying."""
    return DatasetFromList(list(records), copy=False, serialize=True)


def columns_and_sources(
    records: Sequence[Mapping[str, Any]],
) -> tuple[RecordColumns, NDArray[np.int64]]:
    """Columns and ``dataset_source`` (default 0) of records of any kind."""
    if isinstance(records, TrainingRecords):
        return records.columns, records.sources_N
    sources = [record.get("dataset_source", 0) for record in records]
    return columns_of(records), np.array(sources, dtype=np.int64)
