"""tools/train_net.py with an accident in it; started as a program, also by torchrun.

``FAULT`` in the environment: ``kill:RANK:ITERATION`` ends that process of the first start with
SIGKILL; ``worker:ITERATION`` a loader worker, ``worker-seen-here:ITERATION`` one whose end is
noticed while hooks run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from typing import Any

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from detectron2.engine import HookBase
from detectron2.utils import comm

from ext_common.trainer import ExtTrainer
from tools import train_net


class _Accident(HookBase):
    def __init__(self, words: list[str]) -> None:
        self._kind, *self._numbers = words[0], *map(int, words[1:])

    def before_step(self) -> None:
        if self._kind == "kill" and [comm.get_rank(), self.trainer.iter] == self._numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._kind in ("worker", "worker-seen-here") and [self.trainer.iter] == self._numbers:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid or 0, signal.SIGKILL)
            if self._kind == "worker-seen-here":
                time.sleep(60)  # ends as soon as torch's signal handler raises


class FaultyTrainer(ExtTrainer):
    """Has the accident unless torchrun has started it again."""

    def build_hooks(self) -> list[Any]:
        made = super().build_hooks()
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            made.append(_Accident(os.environ["FAULT"].split(":")))
        return made


if __name__ in ("__main__", "__mp_main__"):  # also in the processes that it starts
    train_net.ExtTrainer = FaultyTrainer  # type: ignore[misc]

if __name__ == "__main__":
    sys.exit(train_net.main())
