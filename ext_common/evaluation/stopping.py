"""An evaluation that a signal can end between two batches, in all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ext_common.errors import ExtError
from ext_common.loader_faults import explain_dead_worker


class EvaluationStopped(ExtError):
    """Some process was asked to stop; raised in every process."""


class Batches(Protocol):
    """A test loader."""

    def __len__(self) -> int:
        """Batches of this process."""

    def __iter__(self) -> Iterator[Any]:
        """The batches."""


def evaluate_unless_stopped(
    model: nn.Module,
    batches: Batches,
    evaluator: DatasetEvaluator,
    stop_asked: Callable[[], bool],
) -> Any:
    """detectron2's ``inference_on_dataset``, which a signal ends.

    A process that was asked to stop looks at no further batch. The others finish their own, unless
    they were asked too (launchers send the signal to all), then they agree before scoring.

    Args:
        model: see ``inference_on_dataset``.
        batches: of this process.
        evaluator: gets no ``evaluate()`` call after a stop.
        stop_asked: whether this process was asked to end the run.

    Raises:
        EvaluationStopped: in every process.
        LoaderWorkerError: a process that reads samples was killed.
    """
    with explain_dead_worker(lambda: "while evaluating"):
        return inference_on_dataset(
            model, _UntilStopped(batches, stop_asked), _AgreeFirst(evaluator, stop_asked)
        )


class _UntilStopped:
    def __init__(self, batches: Batches, stop_asked: Callable[[], bool]) -> None:
        self._batches = batches
        self._stop_asked = stop_asked

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._stop_asked():
                return
            yield batch


class _AgreeFirst(DatasetEvaluator):
    def __init__(self, evaluator: DatasetEvaluator, stop_asked: Callable[[], bool]) -> None:
        self._evaluator = evaluator
        self._stop_asked = stop_asked

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        if any(comm.all_gather(self._stop_asked())):
            raise EvaluationStopped("a signal asked to stop")
        return self._evaluator.evaluate()
