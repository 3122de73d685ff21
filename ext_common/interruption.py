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

    A second SIGINT interrupts at once (KeyboardInterrupt). Loader workers that are forked meanwhile
    outlive the first SIGTERM by some seconds, so that a signal to the whole process group does not
    cost the run its checkpoint. Outside the main thread nothing is changed.
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
            self._note_in_worker(number)
        elif number == signal.SIGINT and self._signal:
            raise KeyboardInterrupt
        else:
            self._signal = number

    @staticmethod
    def _note_in_worker(number: int) -> None:
        if number == signal.SIGTERM:
            # it may be the group's, and the run needs another batch, or the parent's order to end
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(_WORKER_GRACE)


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
