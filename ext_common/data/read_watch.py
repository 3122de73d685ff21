"""A read that does not end: which record every loader process has at hand, and for how long.

A disk or network that hangs stops a loader worker without an error, and with it all processes of a
run. The loader therefore waits in short turns, and looks after each at what is being read.

Legend: W rows, one for the main process and one for each worker.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch

from ext_common.loader_faults import LoaderStalledError

T = TypeVar("T")

_TURNS = 10  # within the limit
_LONGEST_TURN = 5.0  # seconds
_START_FACTOR = 5  # workers that read nothing may be starting, which is slow on a busy machine
_ROWS = 257  # the main process and up to 256 workers; more share rows
_TIMED_OUT = re.compile(r"DataLoader timed out")


class Reading(NamedTuple):
    """A record that is being read.

    Args:
        process: id of the process.
        begun: how many records it has begun; changes with every record.
        record: number of the record in the dataset.
    """

    process: int
    begun: int
    record: int


class ReadWatch:
    """Notes, in memory that forked and spawned loader workers share, what each reads."""

    def __init__(self) -> None:
        self._state_W3 = torch.zeros(_ROWS, 3, dtype=torch.int64).share_memory_()

    @contextmanager
    def reading(self, record: int) -> Iterator[None]:
        """Note a record for as long as the block lasts."""
        worker = torch.utils.data.get_worker_info()
        row_3 = self._state_W3[0 if worker is None else 1 + worker.id % (_ROWS - 1)]
        begun = int(row_3[1]) + 1
        row_3[:] = torch.tensor([os.getpid(), begun, record + 1])
        try:
            yield
        finally:
            row_3[2] = 0

    def now(self) -> list[Reading]:
        """What is being read at the moment."""
        rows = self._state_W3[self._state_W3[:, 2] > 0].tolist()
        return [Reading(process, begun, record - 1) for process, begun, record in rows]


@dataclass(frozen=True)
class Patience:
    """How long a batch is waited for.

    Args:
        seconds: limit for reading one sample; 0 = none.
        watch: what is being read.
        name: what messages call a record.
    """

    seconds: float
    watch: ReadWatch
    name: Callable[[int], str]

    @property
    def turn(self) -> float:
        """Seconds after which to look, and the ``timeout`` of a DataLoader with workers."""
        return min(self.seconds / _TURNS, _LONGEST_TURN)

    def batches(self, loader: Any, *, workers: int) -> Iterator[Any]:
        """The batches of a loader.

        Args:
            loader: DataLoader over a dataset that uses the watch, with ``timeout`` :attr:`turn`
                where it has workers.
            workers: how many it has. Without any the limit holds in the main thread only, and not
                for reads that the system does not interrupt.

        Raises:
            LoaderStalledError: one sample has been read for longer than the limit; workers that
                do so are killed.
        """
        batches = iter(loader)
        while True:
            count = _Turns(self)
            try:
                if workers or self.seconds <= 0:
                    batch = _wait(batches, count)
                else:
                    with _interrupted(count):
                        batch = next(batches)
            except StopIteration:
                return
            except _Stalled as stall:
                reading = stall.reading
                break
            yield batch
        if workers:
            _kill({found.process for found in self.watch.now()})
        del batches  # the other workers end here, not when somebody has dealt with the error
        raise self._error(reading)

    def _error(self, reading: Reading | None) -> LoaderStalledError:
        fix = "raise DATALOADER.TIMEOUT_SECONDS (0 = no limit)"
        if reading is None:
            return LoaderStalledError(
                f"no loader worker has read anything for {_START_FACTOR * self.seconds:g} seconds",
                fix=f"lower DATALOADER.NUM_WORKERS if the machine is overloaded, or {fix}",
            )
        return LoaderStalledError(
            f"has been read for more than {self.seconds:g} seconds without an end",
            where=self.name(reading.record),
            fix=f"check the disk or network that it is on; where it is only slow, {fix}",
        )


class _Stalled(BaseException):
    """Not an Exception: nothing between a read and the loader may take it for a bad image."""

    def __init__(self, reading: Reading | None) -> None:
        super().__init__()
        self.reading = reading


class _Turns:
    """Counts how many turns each read has lasted.

    Turns instead of clock time: a run that the system suspends for hours has not stalled.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._turns: dict[Reading | None, int] = {}

    def one_more(self) -> None:
        """Look once.

        Raises:
            _Stalled: something has lasted too long.
        """
        now: list[Reading | None] = [*self._patience.watch.now()]
        self._turns = {reading: self._turns.get(reading, 0) + 1 for reading in now or [None]}
        for reading, turns in self._turns.items():
            limit = self._patience.seconds * (_START_FACTOR if reading is None else 1)
            if turns * self._patience.turn >= limit:
                raise _Stalled(reading)


def _wait(batches: Iterator[T], count: _Turns) -> T:
    """The next batch of a loader with workers, which gives up after every turn."""
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            if not _TIMED_OUT.match(str(error)):
                raise
        count.one_more()


@contextmanager
def _interrupted(count: _Turns) -> Iterator[None]:
    """Look at this process' own reading after every turn, where the system can be asked for it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_REAL)[0]  # somebody else's
    ):
        yield
        return

    def look(_number: int, _frame: FrameType | None) -> None:
        count.one_more()

    turn = count._patience.turn
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, turn, turn)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _kill(processes: Container[int]) -> None:
    """End loader workers that may hang, so that nobody waits for them when the program ends."""
    for child in multiprocessing.active_children():
        if child.pid in processes:
            # torch reports the death by raising wherever the main thread is
            with suppress(RuntimeError):
                child.kill()
                child.join(_LONGEST_TURN)
