"""Reads that do not end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ext_common.data.batching import BatchPlan
from ext_common.data.fetching import SampleFetcher
from ext_common.data.loader import TestLoader, TrainLoader
from ext_common.data.read_watch import Patience, ReadWatch
from ext_common.data.sampling import PermutationStream
from ext_common.errors import ImageError
from ext_common.images import BadSamplePolicy
from ext_common.loader_faults import LoaderStalledError
from tests.child_processes import left_behind

LIMIT = 2.0
COUNT = 8


class Pipe:
    """A mapper that reads a file of every record; one of them is a pipe that nobody writes to."""

    def __init__(self, folder: Path, hangs: int) -> None:
        for number in range(COUNT):
            if number == hangs:
                os.mkfifo(folder / str(number))
            else:
                (folder / str(number)).write_text("a")

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with open(record["file_name"], "rb") as stream:
                return {"id": record["id"], "content": stream.read()}
        except Exception as error:  # as decoders do it
            raise ImageError("corrupt") from error


def fetcher(folder: Path) -> SampleFetcher:
    rows = [{"id": n, "file_name": str(folder / str(n))} for n in range(COUNT)]
    policy = BadSamplePolicy("skip", limit=1.0)
    return SampleFetcher(rows, Pipe(folder, hangs=5), seed=0, policy=policy)


def train_loader(folder: Path, workers: int, timeout: float) -> TrainLoader:
    plan = BatchPlan(PermutationStream(COUNT, 3), np.zeros(COUNT, dtype=int), [2])
    return TrainLoader(fetcher(folder), plan, num_workers=workers, timeout=timeout)


@pytest.mark.timeout(300, method="thread")  # the other method has the only timer for itself
@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_does_not_end_is_named_and_nothing_is_left(
    tmp_path: Path, workers: int
) -> None:
    loader = train_loader(tmp_path, workers, LIMIT)
    handler = signal.getsignal(signal.SIGALRM)
    others = multiprocessing.active_children()
    seen: list[Any] = []
    with pytest.raises(LoaderStalledError) as caught:
        seen.extend(loader)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / '5'}: has been read for more than 2 seconds")
    assert "DATALOADER.TIMEOUT_SECONDS" in text
    assert len(seen) < COUNT / 2
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert left_behind(others) == []
    assert loader.policy.skipped == 0


def test_evaluation_has_the_limit_too(tmp_path: Path) -> None:
    loader = TestLoader(fetcher(tmp_path), timeout=LIMIT, num_workers=1)
    with pytest.raises(LoaderStalledError, match="/5: has been read"):
        list(loader)


def test_without_a_limit_a_read_may_take_any_time(tmp_path: Path) -> None:
    loader = train_loader(tmp_path, 0, 0.0)
    # opening a pipe waits for the other end
    thread = threading.Thread(target=(tmp_path / "5").write_text, args=("late",))
    thread.start()
    samples = [sample for batch in islice(loader, 4) for sample in batch]
    thread.join()
    assert {sample["content"] for sample in samples} == {b"a", b"late"}


class Slow:
    """A loader that gives a batch after so many turns; what is read in each is in ``records``."""

    def __init__(self, watch: ReadWatch, records: list[int | None]) -> None:
        self.watch, self.records = watch, records
        self.block = ExitStack()
        self.record: int | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.records:
            return "batch"
        record = self.records.pop(0)
        if record != self.record and record is not None:
            self.block.close()
            self.block.enter_context(self.watch.reading(record))
            self.record = record
        raise RuntimeError("DataLoader timed out after 1 seconds")


def first_batch(records: list[int | None]) -> str:
    """With a limit of 5 seconds, which are 10 turns."""
    watch = ReadWatch()
    patience = Patience(5.0, watch, "record {}".format)
    assert patience.turn == 0.5
    found: str = next(patience.batches(Slow(watch, records), workers=1))
    return found


def test_the_limit_is_for_one_sample_and_not_for_a_batch() -> None:
    assert first_batch([1] * 9 + [2] * 9 + [3] * 9) == "batch"
    with pytest.raises(LoaderStalledError, match="record 2: has been read for more than 5 sec"):
        first_batch([1] * 9 + [2] * 10)


def test_workers_may_take_longer_to_start() -> None:
    assert first_batch([None] * 49) == "batch"
    with pytest.raises(LoaderStalledError, match=r"no loader worker .* for 25 seconds"):
        first_batch([None] * 50)


def test_a_turn_is_short_enough_to_notice_within_a_minute() -> None:
    watch = ReadWatch()
    assert Patience(60.0, watch, str).turn == 5
    assert Patience(0.0, watch, str).turn == 0


def test_other_errors_of_the_loader_pass() -> None:
    class Broken:
        def __iter__(self) -> Iterator[str]:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        next(Patience(1.0, ReadWatch(), str).batches(Broken(), workers=1))


def test_what_is_read_is_forgotten_afterwards() -> None:
    watch = ReadWatch()
    seen = []

    def read() -> None:
        with watch.reading(0):
            seen.extend(watch.now())
            raise ValueError("bad")

    for _ in range(2):
        with pytest.raises(ValueError, match="bad"):
            read()
        assert watch.now() == []
    assert [(found.process, found.record) for found in seen] == [(os.getpid(), 0)] * 2
    assert seen[0] != seen[1]
