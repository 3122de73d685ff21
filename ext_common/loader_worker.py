"""What every loader worker does first: it must not die too early, nor lose a batch in silence."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
import sys
import time
import traceback
from typing import NoReturn

from ext_common.interruption import outlive_first_sigterm
from ext_common.loader_faults import SHARED_MEMORY


def prepare_loader_worker(worker_id: int = 0) -> None:
    """For ``worker_init_fn`` of a DataLoader.

    A batch that cannot be sent (shared memory is full, or a sample cannot be pickled) would be
    dropped after a message, and the training would wait for it for ever: the worker ends instead.
    """
    outlive_first_sigterm(worker_id)
    # what Python calls in the thread that sends; replaced in this process only
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        _end_with
    )


def _end_with(error: BaseException, _item: object) -> NoReturn:
    traceback.print_exception(error)
    sys.stderr.flush()  # nothing else does at such an end
    if SHARED_MEMORY.search(str(error)):
        # how the kernel ends a process that writes to shared memory that is not there
        os.kill(os.getpid(), signal.SIGBUS)
        time.sleep(10)  # if another thread takes the signal
    os._exit(1)
