"""Time of the parts of a call, each without the parts inside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.timing import now

Place = tuple[str, Any, str]
"""Stage, object and name of its method."""


class ExclusiveClock:
    """Seconds of each stage; a stage inside another one is taken from the outer one.

    Args:
        stages: names, in the order of the table.
        device: what to wait for before each look at the clock.
    """

    def __init__(self, stages: Sequence[str], device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(stages, 0.0)
        self._inner: list[float] = []  # seconds of stages inside each open one

    @contextmanager
    def watching(self, places: Sequence[Place]) -> Iterator[None]:
        """Time these methods."""
        with ExitStack() as stack:
            for stage, owner, name in places:
                timed = self._timed(stage, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
            yield

    def run(self, call: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds of every stage of one call, of what is ``left``, and of ``all``."""
        start = now(self.device)
        call()
        total = now(self.device) - start
        left = total - sum(self.seconds.values())
        return {n: 1e3 * s for n, s in (*self.seconds.items(), ("left", left), ("all", total))}

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._inner.append(0.0)
            start = now(self.device)
            try:
                return function(*arguments, **keywords)
            finally:
                took = now(self.device) - start
                self.seconds[stage] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return timed


def stage_table(rows: dict[str, dict[str, float]], *, head: str = "way") -> str:
    """Markdown: milliseconds and percent of each stage, and ``MB`` where it is known."""
    names = [name for name in next(iter(rows.values())) if name != "MB"]
    lines = [f"| {head} | " + " | ".join([*names, "peak MB"]) + " |"]
    lines.append("|---|" + "--:|" * (len(names) + 1))
    for way, row in rows.items():
        cells = [f"{row[n]:.0f} ms ({row[n] / row['all']:.0%})" if row[n] else "" for n in names]
        lines.append(f"| {way} | " + " | ".join([*cells, f"{row.get('MB', 0):.0f}"]) + " |")
    return "\n".join(lines)
