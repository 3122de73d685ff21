"""Gradient accumulation: several batches for one update of the weights.

Where a loss is a mean over the images of a batch, the mean over equal micro-batches is the loss of
the large batch, and so are the gradients. Batch norms are the exception: their statistics are those
of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class MicroBatches:
    """The batches of one step.

    Args:
        parts: one or more, each what the model takes.
    """

    parts: tuple[Any, ...]

    def samples(self) -> list[Any]:
        """The samples of all batches that are lists, for messages."""
        return [sample for part in self.parts if isinstance(part, list) for sample in part]


@runtime_checkable
class CountsMicroBatches(Protocol):
    """A model that does something once per step, however many batches the step has."""

    def set_micro_batch(self, index: int, count: int) -> None:
        """Called before the forward pass of batch ``index`` (from 0) of ``count``."""


def next_micro_batches(batches: Iterator[Any], count: int) -> Any | None:
    """The next ``count`` batches together; a single one stays as it is. None where they end."""
    parts = []
    for _ in range(count):
        part = next(batches, None)
        if part is None:
            return None
        parts.append(part)
    return parts[0] if count == 1 else MicroBatches(tuple(parts))


def mean_by_name(losses: Iterable[Iterable[tuple[str, Any]]], count: int) -> dict[str, Any]:
    """Sum of each loss over the batches divided by their number; a loss that one lacks is 0."""
    means: dict[str, Any] = {}
    for of_batch in losses:
        for name, value in of_batch:
            means[name] = means[name] + value / count if name in means else value / count
    return means
