"""Progress of long reading, in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called now and then with (done, all), in whatever is counted."""

_SECONDS = 10.0


def logged_progress(what: str) -> Progress:
    """A line every ten seconds: ``<what>: 34 %``; nothing for what takes less."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            logger.info("%s: %d %%", what, 100 * done // max(total, 1))

    return report
