"""One thread per process: two OpenMP threads on a busy machine spin (docs/benchmarks.md)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch

import ext_common  # noqa: F401 - repairs detectron2 0.6 before any test imports it

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog

LOGGERS = ("ext_common", "detic_ext", "detectron2", "fvcore", "tools", "soco_ext", "regionclip_ext")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """A run inside a test sets up logging for its process; later tests look at their own records."""
    names = [None, *(n for n in logging.root.manager.loggerDict if n.split(".")[0] in LOGGERS)]
    before = [
        (log := logging.getLogger(n), log.level, log.propagate, log.handlers[:]) for n in names
    ]
    yield
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers
    for name in set(logging.root.manager.loggerDict) - set(names):
        if name.split(".")[0] in LOGGERS:
            logging.getLogger(name).propagate = True


@pytest.fixture(autouse=True, scope="module")
def _dataset_names_as_they_were() -> Iterator[None]:
    """Names are registered for the whole process; another module may give them other content."""
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
