"""Hooks for detectron2's trainer loop that it does not have itself.

Shapes: K losses of one step, N steps since the last transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ext_common.train_step import StepLosses

LOG_PERIOD = 20
"""Iterations between two reports, as in detectron2."""


class SampleCounts(Protocol):
    """What a loader's policy counts, see ``images.BadSamplePolicy``."""

    @property
    def attempts(self) -> int:
        """Samples that this process tried to read."""

    @property
    def skipped(self) -> int:
        """Samples that could not be read and were replaced."""


@dataclass(frozen=True)
class _Step:
    iteration: int
    data_time: float
    losses: StepLosses


class LossRecorder(HookBase):
    """Brings losses from the device to the metrics, many steps at a time.

    The metrics are detectron2's (``total_loss``, each loss, ``data_time``; mean or maximum over
    processes, one value per iteration); only the transfer and the exchange between processes are
    done once per ``period`` instead of once per loss and step. Must come before the hook that
    writes the metrics, in every process.

    Args:
        period: iterations between transfers.
        counts: bad samples of this process, if its loader counts them; in the metrics they are
            ``bad_samples`` and ``bad_sample_share`` of all processes since the start.
    """

    def __init__(self, period: int = LOG_PERIOD, counts: SampleCounts | None = None) -> None:
        self._period = period
        self._counts = counts
        self._steps: list[_Step] = []

    def record(self, iteration: int, losses: StepLosses, data_time: float) -> None:
        """Keep one step; costs nothing on the device.

        Args:
            iteration: of the step.
            losses: still on the device.
            data_time: seconds that this process waited for the batch.
        """
        self._steps.append(_Step(iteration, data_time, losses))

    def after_step(self) -> None:
        """Hand the metrics over where a report is due."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self.flush()

    def flush(self) -> None:
        """Transfer what was kept and put it into the trainer's storage; all processes call it."""
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        # one copy to the host, however the names of the losses change between steps
        values = iter(torch.cat([step.losses.values_K for step in steps]).tolist())
        mine = [
            (step.data_time, {name: next(values) for name in step.losses.names}) for step in steps
        ]
        counts = (self._counts.skipped, self._counts.attempts) if self._counts else (0, 0)
        gathered = comm.gather((mine, counts))
        if not comm.is_main_process():
            return
        everyones = [of_process for of_process, _ in gathered]
        storage = self.trainer.storage
        now = storage.iter
        for step, of_step in zip(steps, zip(*everyones, strict=True), strict=True):
            storage.iter = step.iteration
            storage.put_scalar("data_time", max(data_time for data_time, _ in of_step))
            losses = [losses for _, losses in of_step]
            means = _means(losses)
            totals = [sum(of_process.values()) for of_process in losses]
            storage.put_scalar("total_loss", sum(totals) / len(totals))
            if len(means) > 1:
                storage.put_scalars(**means)
        storage.iter = now
        if self._counts:
            skipped = sum(of_process[0] for _, of_process in gathered)
            attempts = sum(of_process[1] for _, of_process in gathered)
            storage.put_scalar("bad_samples", skipped, smoothing_hint=False)
            share = skipped / max(attempts, 1)
            storage.put_scalar("bad_sample_share", share, smoothing_hint=False)


def _means(losses: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each loss over the processes that had it."""
    names = dict.fromkeys(name for of_process in losses for name in of_process)
    means = {}
    for name in names:
        values = [of_process[name] for of_process in losses if name in of_process]
        means[name] = sum(values) / len(values)
    return means
