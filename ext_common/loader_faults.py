"""A loader worker that died, or that never answers, is told in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import walk_tb

from ext_common.errors import LaunchError
from ext_common.non_finite import image_text

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)([^.]*)")
SHARED_MEMORY = re.compile(r"bus error|shared memory|shm", re.IGNORECASE)
"""What messages about memory that loader workers share have in them."""


class LoaderWorkerError(LaunchError):
    """A process that reads samples was killed."""


class LoaderStalledError(LaunchError):
    """Reading a sample does not end."""


@dataclass(frozen=True)
class DeadWorker:
    """What an exception says about a loader worker that died.

    Args:
        how: such as "(pid 7) killed by signal: Killed".
        shared_memory: it ran out of that.
    """

    how: str
    shared_memory: bool = False

    @classmethod
    def behind(cls, error: BaseException) -> DeadWorker | None:
        """The worker whose death made this exception; None where it is about something else."""
        if isinstance(error, ConnectionError | EOFError):  # it died while it handed a batch over
            return cls("closed its connection") if _while_receiving(error) else None
        if not isinstance(error, RuntimeError):
            return None
        texts = [str(error), str(error.__cause__ or ""), str(error.__context__ or "")]
        found = [match for match in map(_DEAD_WORKER.search, texts) if match]
        if not found:
            return None
        # torch's own exception is often preceded by the one of its signal handler
        how = next((m[2].strip() for m in found if "signal" in m[2]), "exited unexpectedly")
        how = f"(pid {found[0][1].strip()}) {how.removeprefix('is ')}"
        return cls(how, any(map(SHARED_MEMORY.search, texts)))


@contextmanager
def explain_dead_worker(
    when: Callable[[], str], last_images: Callable[[], Sequence[str]] | None = None
) -> Iterator[None]:
    """Turn torch's message about a dead loader worker into ours.

    torch tells about it at any time, not only to who waits for a batch: the block may be large.

    Args:
        when: says such as "at iteration 3".
        last_images: gives the ids of the last batch that came, if that is known.

    Raises:
        LoaderWorkerError: in place of torch's RuntimeError, or of a lost connection.
    """
    try:
        yield
    except Exception as error:
        dead = DeadWorker.behind(error)
        if dead is None:
            raise
        images = None if last_images is None else last_images()
        raise _explained(dead, when(), images) from error


def _while_receiving(error: BaseException) -> bool:
    """Whether the exception comes from what takes batches from another process."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.startswith("multiprocessing.") for name in modules)


def _explained(dead: DeadWorker, when: str, last_images: Sequence[str] | None) -> LoaderWorkerError:
    where = "the first batch" if last_images is not None else ""
    return LoaderWorkerError(
        f"a loader worker {dead.how} {when}",
        where=f"after {image_text(last_images)}" if last_images else where,
        fix="shared memory is full: enlarge /dev/shm or lower DATALOADER.NUM_WORKERS"
        if dead.shared_memory
        else "out of memory? lower DATALOADER.NUM_WORKERS; 0 reads in the main process and shows "
        "its error",
    )
