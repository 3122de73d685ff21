"""What checks found: the number of cases of every kind, and the first ones by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ext_common.data.problem_kinds import KINDS, Kind
from ext_common.errors import DatasetError

logger = logging.getLogger(__name__)

SHOWN = 10
"""Cases of a kind that are named."""

_ORDER = {kind: place for place, kind in enumerate(KINDS)}


class Findings:
    """Problems of one dataset.

    Attributes:
        counts: cases by kind.
        examples: the first :data:`SHOWN` cases by kind, as messages name them.
    """

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self.examples: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, example: object) -> None:
        """Note one case."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < SHOWN:
            shown.append(str(example))

    def add_all(
        self,
        kind: Kind,
        places: Sequence[int] | NDArray[np.int64],
        name: Callable[[int], object] = str,
    ) -> None:
        """Note many cases; only those that are shown are given a name."""
        if not len(places):
            return
        self.counts[kind] = self.counts.get(kind, 0) + len(places)
        shown = self.examples.setdefault(kind, [])
        shown.extend(str(name(int(place))) for place in places[: SHOWN - len(shown)])

    def kinds(self, severity: str = "") -> list[Kind]:
        """Kinds that were found, in the order of reports; of one severity where given."""
        found = (kind for kind in self.counts if severity in ("", kind.severity))
        return sorted(found, key=_ORDER.__getitem__)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def total(self, kinds: Iterable[Kind]) -> int:
        """Cases of several kinds together."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    def first(self, kinds: Sequence[Kind]) -> str:
        """The first cases of several kinds together, and whether there are more."""
        names = [name for kind in kinds for name in self.examples.get(kind, ())]
        shown = ", ".join(names[:SHOWN])
        return f"{shown}, ..." if self.total(kinds) > len(names[:SHOWN]) else shown

    def refuse(self, *, where: str, tolerated: Container[Kind] = ()) -> None:
        """Raise DatasetError ``"<count> <what>: <first ten>"`` for the first error, if any.

        Args:
            where: the file.
            tolerated: kinds that are no errors here.
        """
        errors = [kind for kind in self.kinds("error") if kind not in tolerated]
        if not errors:
            return
        alike = [kind for kind in errors if kind.what == errors[0].what]
        more = len({kind.what for kind in errors}) - 1
        hints = [alike[0].fix] if alike[0].fix else []
        if more:
            hints.append(f"{more} more kinds of problems: tools/prepare_data.py check lists them")
        raise DatasetError(
            f"{self.total(alike)} {alike[0].what}: {self.first(alike)}",
            where=where,
            fix="; ".join(hints),
        )

    def log(self, kinds: Sequence[Kind], *, where: str, about: str = "") -> None:
        """Warn of cases of these kinds in one line; ``about`` stands before the number."""
        if count := self.total(kinds):
            said = f"{about} {count}" if about else str(count)
            logger.warning("%s: %s %s: %s", where, said, kinds[0].what, self.first(kinds))
