"""Logging as it was before a tool set it up for the whole process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tools import train_net


@contextmanager
def logging_restored() -> Iterator[None]:
    """Levels and handlers are put back at the end."""
    names = ("fvcore", "detectron2", "ext_common", *train_net.packages.PACKAGES)
    before = {n: (logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names}
    yield
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers = handlers
