"""A loader worker that died, or that never answers, is told in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ext_common.errors import LaunchError
from ext_common.non_finite import image_text

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)([^.]*)")
SHARED_MEMORY = re.compile(r"bus error|shared memory|shm", re.IGNORECASE)
"""What messages about memory that loader workers share have in them."""


class LoaderWorkerError(LaunchError):
    """A process that reads samples was killed."""


class LoaderStalledError(LaunchError):
    """Reading a sample does not end."""


@contextmanager
def explain_dead_worker(when: str, last_images: Sequence[str] | None = None) -> Iterator[None]:
    """Turn torch's message about a dead loader worker into ours.

    Args:
        when: such as "at iteration 3".
        last_images: ids of the last batch that came, if that is known.

    Raises:
        LoaderWorkerError: in place of torch's RuntimeError, or of a lost connection.
    """
    try:
        yield
    except (ConnectionError, EOFError) as error:  # it died while it handed a batch over
        raise _dead_worker("", "closed its connection", when, last_images, False) from error
    except RuntimeError as error:
        texts = [str(error), str(error.__cause__ or ""), str(error.__context__ or "")]
        found = [match for match in map(_DEAD_WORKER.search, texts) if match]
        if not found:
            raise
        # torch's own exception is often preceded by the one of its signal handler
        how = next((m[2].strip() for m in found if "signal" in m[2]), "exited unexpectedly")
        who = f" (pid {found[0][1].strip()})"
        shared = any(map(SHARED_MEMORY.search, texts))
        raise _dead_worker(who, how.removeprefix("is "), when, last_images, shared) from error


def _dead_worker(
    who: str, how: str, when: str, last_images: Sequence[str] | None, shared: bool
) -> LoaderWorkerError:
    where = "the first batch" if last_images is not None else ""
    return LoaderWorkerError(
        f"a loader worker{who} {how} {when}",
        where=f"after {image_text(last_images)}" if last_images else where,
        fix="shared memory is full: enlarge /dev/shm or lower DATALOADER.NUM_WORKERS"
        if shared
        else "out of memory? lower DATALOADER.NUM_WORKERS; 0 reads in the main process and shows "
        "its error",
    )
