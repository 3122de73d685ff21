"""Which samples form a batch: planned from indices alone, before any image is read.

Because the plan is a pure function of (seed, state), a run that is stopped continues with exactly
the batches that it would have had, whatever the loader workers had fetched ahead, and any number of
processes walks through the same global order.

Legend: N dataset items; G groups; ``groups_N``, ``batch_sizes_G`` integers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ext_common.data.sampling import IndexStream
from ext_common.errors import ConfigError, DatasetError

_STATE_FORMAT = 1


class Ticket(NamedTuple):
    """One sample of a run: its ``position`` in the global order, its ``record`` in the dataset."""

    position: int
    record: int


@dataclass(frozen=True)
class PlanState:
    """Where a plan stands after a step.

    Args:
        position: the next element of the stream.
        pending: tickets that were drawn and are in no batch yet, by position.
    """

    position: int = 0
    pending: tuple[Ticket, ...] = ()


class BatchPlan:
    """Puts the samples of a stream together, each batch from one group.

    A group's batch is complete when its last sample comes. With ``same_group`` the batches of all
    processes in a step come from one group: a group collects ``batch size x processes`` samples and
    process r takes every ``processes``-th of them, beginning with the r-th. Otherwise
    (the original mixed training) complete batches are dealt to the processes in turn, so that a
    step may have boxes on one process and image labels on another.

    Args:
        stream: endless order of samples.
        groups_N: group of every dataset item; batches hold one group each.
        batch_sizes_G: samples per process, by group.
        processes: number of processes.
        same_group: see above; the same for one process.

    Raises:
        ConfigError: a batch size below 1.
    """

    def __init__(
        self,
        stream: IndexStream,
        groups_N: NDArray[np.integer[Any]],
        batch_sizes_G: Sequence[int],
        *,
        processes: int = 1,
        same_group: bool = True,
    ) -> None:
        if len(groups_N) != stream.size:
            raise AssertionError(f"{len(groups_N)} groups for {stream.size} samples")
        if min(batch_sizes_G) < 1:
            raise ConfigError(
                f"batch sizes per process {list(batch_sizes_G)} are not all 1 or more",
                fix="raise SOLVER.IMS_PER_BATCH (the total over all processes) or DATASET_BS",
            )
        self.stream = stream
        self.groups_N = np.asarray(groups_N)
        self.batch_sizes_G = tuple(int(size) for size in batch_sizes_G)
        self.processes = processes
        self.same_group = same_group

    def steps(
        self, state: PlanState | None = None
    ) -> Iterator[tuple[list[list[Ticket]], PlanState]]:
        """Steps after ``state`` (default: from the beginning).

        Yields:
            The batch of every process, and the state after this step.
        """
        state = state or PlanState()
        waiting = deque(state.pending)
        position = state.position
        fresh = self.stream.indices(position)
        share = self.processes if self.same_group else 1
        per_step = 1 if self.same_group else self.processes
        buckets: list[list[Ticket]] = [[] for _ in self.batch_sizes_G]
        complete: list[list[Ticket]] = []
        while True:
            if waiting:
                ticket = waiting.popleft()
            else:
                ticket = Ticket(position, next(fresh))
                position += 1
            group = int(self.groups_N[ticket.record])
            buckets[group].append(ticket)
            if len(buckets[group]) < self.batch_sizes_G[group] * share:
                continue
            complete.append(buckets[group])
            buckets[group] = []
            if len(complete) == per_step:
                left = sorted(ticket for bucket in buckets for ticket in bucket)
                yield self._dealt(complete), PlanState(position, (*left, *waiting))
                complete = []

    def state_dict(self, state: PlanState) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        return {
            "format": _STATE_FORMAT,
            "seed": self.stream.seed,
            "size": self.stream.size,
            "position": state.position,
            "pending": [list(ticket) for ticket in state.pending],
        }

    def restored(self, saved: Mapping[str, Any]) -> tuple[BatchPlan, PlanState]:
        """The plan with the saved seed, and the saved state.

        Raises:
            DatasetError: the state is of another dataset or of another format.
        """
        if saved.get("format") != _STATE_FORMAT:
            raise DatasetError(f"loader state of unknown format {saved.get('format')!r}")
        if saved["size"] != self.stream.size:
            raise DatasetError(
                f"the training data have {self.stream.size} images; "
                f"the interrupted run had {saved['size']}",
                fix="restore the datasets, or start a new run from its weights",
            )
        plan = BatchPlan(
            self.stream.reseeded(saved["seed"]),
            self.groups_N,
            self.batch_sizes_G,
            processes=self.processes,
            same_group=self.same_group,
        )
        pending = tuple(Ticket(*ticket) for ticket in saved["pending"])
        return plan, PlanState(saved["position"], pending)

    def _dealt(self, complete: list[list[Ticket]]) -> list[list[Ticket]]:
        if self.same_group:
            return [complete[0][rank :: self.processes] for rank in range(self.processes)]
        return complete


def batch_per_process(total: int, processes: int) -> int:
    """``SOLVER.IMS_PER_BATCH`` divided among processes.

    Raises:
        ConfigError: fewer images than processes, or a remainder.
    """
    if total < processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {total} is less than one image for each of {processes} processes",
            fix=f"set it to a multiple of {processes}, or start fewer processes",
        )
    if total % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {total} cannot be divided among {processes} processes",
            fix=f"set it to a multiple of {processes}",
        )
    return total // processes
