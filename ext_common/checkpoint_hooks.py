"""Hooks that save checkpoints: by period, at the end, on a signal, and the best one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from detectron2.engine import HookBase
from detectron2.utils import comm

from ext_common.checkpoint import Checkpointer
from ext_common.checkpoint_retention import remove_older
from ext_common.errors import ConfigError, WeightsError
from ext_common.interruption import TrainingInterrupted

BEST_NAME = "model_best"
FAILURE_POLICIES = ("stop", "continue")

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves every ``period`` iterations, after the last one, and before a requested stop.

    Args:
        checkpointer: all processes save together.
        period: iterations; 0 or less = only at the end.
        keep_last: numbered checkpoints to keep; 0 = all.
        on_failure: a periodic save that fails (disk full) ends the run (``stop``) or is logged and
            tried again a period later (``continue``). The last one must succeed.
        stop: name of the signal once all processes know that the run is to end, else empty.

    Raises:
        ConfigError: another policy.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        *,
        keep_last: int = 0,
        on_failure: str = "stop",
        stop: Callable[[], str] = str,
    ) -> None:
        if on_failure not in FAILURE_POLICIES:
            raise ConfigError(
                f"{on_failure!r} is not known",
                where="SOLVER.CHECKPOINT_FAILURE",
                fix=f"one of {', '.join(FAILURE_POLICIES)}",
            )
        self._checkpointer = checkpointer
        self._period = period
        self._keep_last = keep_last
        self._on_failure = on_failure
        self._stop = stop
        self._saved = -1

    def after_step(self) -> None:
        """Save where it is due.

        Raises:
            TrainingInterrupted: the run was asked to stop, and is saved.
            WeightsError: it cannot be saved.
        """
        iteration = self.trainer.iter
        signal_name = self._stop()
        due = self._period > 0 and (iteration + 1) % self._period == 0
        if signal_name:
            self.save_and_stop(signal_name)
        if due:
            try:
                self._save(f"model_{iteration:07d}", iteration)
            except WeightsError as error:
                if self._on_failure == "stop":
                    raise
                logger.error("Training goes on without a new checkpoint: %s", error)
        if iteration >= self.trainer.max_iter - 1:
            self._save("model_final", iteration)

    def save_and_stop(self, reason: str) -> NoReturn:
        """Save what is not saved yet, and end the run; all processes call this together.

        Args:
            reason: name of the signal, and perhaps what it met.

        Raises:
            TrainingInterrupted: always, unless the checkpoint cannot be saved (WeightsError).
        """
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if self._saved != iteration:
            self._save(f"model_{iteration:07d}", iteration)
        comm.synchronize()  # nobody ends, and takes the others along, while one is writing
        raise TrainingInterrupted(
            f"stopped by {reason} after iteration {iteration}, the checkpoint is saved",
            where=self._checkpointer.get_checkpoint_file(),
            fix="--resume continues the run",
        )

    def _save(self, name: str, iteration: int) -> None:
        self._checkpointer.save(name, iteration=iteration)
        self._saved = iteration
        if comm.is_main_process():
            remove_older(Path(self._checkpointer.folder), self._keep_last)


class KeepBest(HookBase):
    """Saves ``model_best.pth`` whenever an evaluation beats all earlier ones, also across resumes.

    Must come after the hook that evaluates, in every process.

    Args:
        checkpointer: all processes save together.
        metric: ``task/metric`` of the first test set, such as ``bbox/AP50``; larger is better.
        results: the last evaluation (dataset -> task -> metric), a new object every time;
            complete in the main process.

    Raises:
        ConfigError: ``metric`` is not of that form.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        metric: str,
        results: Callable[[], Mapping[str, Mapping[str, Any]]],
    ) -> None:
        self._task, slash, self._metric = metric.partition("/")
        if not (self._task and slash and self._metric):
            raise ConfigError(
                f"{metric!r} names no metric",
                where="SOLVER.CHECKPOINT_KEEP_BEST",
                fix="task/metric, such as bbox/AP50",
            )
        self._checkpointer = checkpointer
        self._results = results
        self._seen = results()
        self.best = -math.inf
        self.iteration = -1

    def state_dict(self) -> dict[str, Any]:
        """The best value and its iteration."""
        return {"metric": f"{self._task}/{self._metric}", "best": self.best, "at": self.iteration}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; values of another metric are not comparable."""
        if state_dict["metric"] == f"{self._task}/{self._metric}":
            self.best, self.iteration = float(state_dict["best"]), int(state_dict["at"])

    def after_step(self) -> None:
        """Look at a new evaluation."""
        self._look(self.trainer.iter)

    def after_train(self) -> None:
        """Look at the evaluation after the last iteration."""
        self._look(self.trainer.iter - 1)

    def _look(self, iteration: int) -> None:
        results = self._results()
        if results is self._seen:
            return
        self._seen = results
        value = comm.all_gather(self._value(results) if comm.is_main_process() else None)[0]
        if value is None or not value > self.best:
            return
        self.best, self.iteration = value, iteration
        logger.info("Best %s/%s so far: %.4g", self._task, self._metric, value)
        self._checkpointer.save(BEST_NAME, iteration=iteration)

    def _value(self, results: Mapping[str, Mapping[str, Any]]) -> float | None:
        scores = next(iter(results.values()), {})
        value = scores.get(self._task, {}).get(self._metric)
        if value is None:
            known = [f"{task}/{name}" for task, found in scores.items() for name in found]
            logger.error(
                "SOLVER.CHECKPOINT_KEEP_BEST: no metric %s/%s, there are %s",
                self._task,
                self._metric,
                ", ".join(known[:12]) or "none",
            )
            return None
        return float(value)


class HookStates:
    """The states of all hooks that have one, as one part of a checkpoint.

    Args:
        hooks: of the trainer; the first of each class.
    """

    def __init__(self, hooks: list[Any]) -> None:
        self._hooks: dict[str, Any] = {}
        for hook in hooks:
            if hasattr(hook, "load_state_dict"):
                self._hooks.setdefault(type(hook).__qualname__, hook)

    def state_dict(self) -> dict[str, Any]:
        """States by class name."""
        return {name: hook.state_dict() for name, hook in self._hooks.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the hooks that were there then and are there now."""
        for name, state in state_dict.items():
            if name in self._hooks:
                self._hooks[name].load_state_dict(state)
            else:
                logger.warning("The checkpoint has a state of the hook %s, the run has none", name)
