"""SIGTERM and SIGINT as requests: a training step is finished and a checkpoint saved first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ext_common.errors import ExtError

INTERRUPTED_CODE = 75
"""Exit code of a run that a signal ended after its checkpoint was saved (EX_TEMPFAIL)."""

_WORKER_GRACE = 30  # seconds
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingInterrupted(ExtError):
    """A signal asked the run to stop, and its state is saved."""


class StopRequest:
    """Notes the first SIGTERM or SIGINT of this process instead of dying of it.

    A second SIGINT interrupts at once (KeyboardInterrupt). Outside the main thread nothing changes.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._owner = os.getpid()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._signal != 0

    @property
    def signal_name(self) -> str:
        """``SIGTERM``, ``SIGINT``, or empty."""
        return signal.Signals(self._signal).name if self._signal else ""

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals over inside the block."""
        self._owner = os.getpid()
        with _handling(self._note):
            yield self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a forked loader worker; the keyboard's SIGINT goes to all processes
        if number == signal.SIGINT and self._signal:
            raise KeyboardInterrupt
        self._signal = number


def outlive_first_sigterm(_worker_id: int = 0) -> None:
    """For ``worker_init_fn`` of a DataLoader: a SIGTERM to the whole process group (torchrun, Slurm)
    does not end this loader worker before the run has fetched what it needs to stop in order.
    """

    def later(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(_WORKER_GRACE)

    signal.signal(signal.SIGTERM, later)


@contextmanager
def handing_on_signals() -> Iterator[None]:
    """In a process that only waits for its children: they get SIGTERM, and decide when to end."""
    seen: list[int] = []

    def hand_on(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and seen:
            for child in multiprocessing.active_children():
                child.kill()
            raise KeyboardInterrupt
        seen.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    with _handling(hand_on):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
