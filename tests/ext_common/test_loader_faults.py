"""What torch and Python say about a loader worker that died becomes one line; other errors pass."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest

from ext_common.loader_faults import LoaderWorkerError, explain_dead_worker

KILLED = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ..."
EXITED = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"


def explained(error: BaseException, cause: BaseException | None = None) -> str:
    with pytest.raises(LoaderWorkerError) as caught, explain_dead_worker(lambda: "at lunch"):
        raise error from cause
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_messages_of_torch_name_process_signal_and_remedy() -> None:
    text = explained(RuntimeError(EXITED))
    assert "a loader worker (pid 7, 8) exited unexpectedly at lunch" in text
    assert "out of memory?" in text
    # its own exception hides how the worker ended, which the signal handler's tells
    text = explained(RuntimeError(EXITED), RuntimeError(KILLED))
    assert "(pid 7, 8) killed by signal: Bus error at lunch" in text
    assert "enlarge /dev/shm" in text


def test_a_connection_that_broke_while_a_batch_came_is_a_dead_worker() -> None:
    here, there = multiprocessing.Pipe()
    there.close()
    with pytest.raises(LoaderWorkerError, match="closed its connection at lunch"):  # noqa: SIM117
        with explain_dead_worker(lambda: "at lunch"):
            here.recv()
    here.close()


def test_other_errors_pass_as_they_are() -> None:
    def truncated() -> None:
        pickle.loads(b"")

    def disconnected() -> None:
        raise ConnectionResetError("of a web page")

    def other() -> None:
        raise RuntimeError("shapes do not fit")

    for fails, kind in (
        (truncated, EOFError),
        (disconnected, ConnectionError),
        (other, RuntimeError),
    ):
        with pytest.raises(kind) as caught, explain_dead_worker(lambda: "at lunch"):
            fails()
        assert not isinstance(caught.value, LoaderWorkerError)


def test_the_place_is_that_of_the_error() -> None:
    images: list[str] = []

    def read_one_batch() -> None:
        images.append("17")
        raise RuntimeError(EXITED)

    with pytest.raises(LoaderWorkerError) as first, explain_dead_worker(str, lambda: images):
        raise RuntimeError(EXITED)
    assert str(first.value).startswith("the first batch: ")
    with pytest.raises(LoaderWorkerError) as later, explain_dead_worker(str, lambda: images):
        read_one_batch()
    assert "17" in str(later.value).split(":")[0]
