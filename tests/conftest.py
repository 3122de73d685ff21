"""One thread per process: two OpenMP threads on a busy machine spin (docs/benchmarks.md)."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch

import ext_common  # noqa: F401 - repairs detectron2 0.6 before any test imports it


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
