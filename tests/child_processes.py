"""Which processes a test has left behind."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection
from multiprocessing.process import BaseProcess

PATIENCE = 30  # seconds for a process that was told to end; a stuck one sleeps for an hour


def left_behind(before: Collection[BaseProcess]) -> list[BaseProcess]:
    """The children that have come since ``before`` (``multiprocessing.active_children()``) and stay.

    Tests share a process, and a loader of an earlier one may end its workers late (when its cycle of
    references is collected); a worker that was just told to end needs a moment on a busy machine.
    """
    new = [child for child in multiprocessing.active_children() if child not in before]
    for child in new:
        child.join(PATIENCE)
    return [child for child in new if child.is_alive()]
