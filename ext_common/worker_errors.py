"""How the error of a started process reaches the process that started it.

Each process that fails leaves one small JSON file; the earliest is the cause, the others followed.
"""

from __future__ import annotations

import json
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from ext_common import errors
from ext_common.errors import ExtError, LaunchError
from ext_common.interruption import TrainingInterrupted

# what gloo, NCCL and the store say when the process at the other end is gone
_LOST_CONNECTION = re.compile(r"connection|peer|nccl|broken pipe|store", re.IGNORECASE)


class WorkerCrash(LaunchError):
    """A process stopped with an error that is not one of ours, or was killed."""


@dataclass(frozen=True)
class ErrorBoard:
    """A folder that all processes of one machine can write to.

    Args:
        folder: exists as long as the processes run.
    """

    folder: str

    @classmethod
    @contextmanager
    def create(cls) -> Iterator[ErrorBoard]:
        """A board in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="ext_common-errors-") as folder:
            yield cls(folder)

    @contextmanager
    def reporting(self, rank: int) -> Iterator[None]:
        """Write down the exception that leaves the block, and let it go on."""
        try:
            yield
        except Exception as error:
            self._write(rank, error)
            raise

    def note_exits(self, codes: Sequence[int | None], first_rank: int = 0) -> None:
        """Write down processes that a signal ended, unless it is the one that ends the others.

        Args:
            codes: exit code of each process of this machine; negative = the signal's number.
            first_rank: rank of the first of them.
        """
        for rank, code in enumerate(codes, start=first_rank):
            killed = code is not None and code < 0 and -code != signal.SIGTERM
            if code is not None and killed and not self._path(rank).exists():
                self._put(rank, killed=_signal_name(-code), time=time.time())

    def first(self) -> dict[str, Any] | None:
        """The record of the process that failed first, or None.

        A process that only lost the connection to another comes last.
        """
        records = [json.loads(path.read_text()) for path in Path(self.folder).glob("rank*.json")]
        return min(records, key=lambda it: (bool(it.get("lost")), it["time"]), default=None)

    def _write(self, rank: int, error: Exception) -> None:
        record: dict[str, Any] = {
            "time": time.time(),
            "rank": rank,
            "kind": type(error).__name__,
            "details": "".join(traceback.format_exception(error)),
        }
        if isinstance(error, ExtError):
            record.update(what=error.what, where=error.where, fix=error.fix, ours=True)
        else:
            what = first_line(error)
            lost = isinstance(error, RuntimeError) and _LOST_CONNECTION.search(what) is not None
            record.update(what=what, where="", fix="", ours=False, lost=lost)
        self._put(**record)

    def _put(self, rank: int, **record: Any) -> None:
        path = self._path(rank)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"rank": rank, **record}))
        partial.replace(path)

    def _path(self, rank: int) -> Path:
        return Path(self.folder) / f"rank{rank}.json"


def rebuild_error(board: ErrorBoard, ended: Exception) -> ExtError:
    """The error to raise in the starting process, with the other's traceback as a note.

    Args:
        board: what the processes left.
        ended: torch's exception about the process that it saw ending first.
    """
    record = board.first()
    if record is None:
        return _without_record(ended)
    where = f"process {record['rank']}"
    if "killed" in record:
        return _killed(where, record["killed"])
    if record["ours"]:
        # other kinds defined elsewhere than in errors.py stay an ExtError
        kinds = {**vars(errors), TrainingInterrupted.__name__: TrainingInterrupted}
        kind = kinds.get(record["kind"], ExtError)
        if record["where"]:
            where = f"{where}: {record['where']}"
        error: ExtError = kind(record["what"], where=where, fix=record["fix"])
    else:
        error = WorkerCrash(f"{record['kind']}: {record['what']}", where=where)
    error.add_note(record["details"])
    return error


def first_line(error: BaseException) -> str:
    """First line of an exception's text; its type where the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _without_record(ended: Exception) -> WorkerCrash:
    where = f"process {getattr(ended, 'error_index', '?')}"
    if isinstance(ended, mp.ProcessExitedException):
        if ended.signal_name:
            return _killed(where, ended.signal_name)
        return WorkerCrash(f"ended with exit code {ended.exit_code}", where=where)
    crash = WorkerCrash("stopped before the process group was ready", where=where)
    crash.add_note(str(ended))
    return crash


def _killed(where: str, signal_name: str) -> WorkerCrash:
    return WorkerCrash(
        f"killed by {signal_name}",
        where=where,
        fix="SIGKILL: the machine ran out of memory; SIGBUS: out of shared memory (/dev/shm)",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
