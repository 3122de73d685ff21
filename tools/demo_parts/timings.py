"""Where the time goes: reading, the model, drawing, writing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

STAGES = ("read", "model", "draw", "write")
"""``model`` includes resizing, and moving results to the host."""


class StageTimes:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def iterate(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time to get each added to a stage."""
        iterator = iter(items)
        while True:
            try:
                with self.measure(stage):
                    item = next(iterator)
            except StopIteration:
                return
            yield item

    def table(self, pictures: int) -> str:
        """One line per stage: milliseconds of a picture and share of the whole."""
        total = sum(self.seconds.values())
        lines = ["stage   ms/picture   share"]
        for stage, seconds in [*self.seconds.items(), ("all", total)]:
            mean = 1e3 * seconds / max(1, pictures)
            share = seconds / total if total else 0.0
            lines.append(f"{stage:<6}{mean:>12.1f}{share:>8.0%}")
        if total:
            lines.append(f"{pictures / total:.2f} pictures/s")
        return "\n".join(lines)
