"""Training and evaluation of any registered model, on detectron2's trainer loop and hooks."""

from __future__ import annotations

import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.engine.defaults import default_writers
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from ext_common.checkpoint import Checkpointer, load_model_weights, unwrap_model
from ext_common.checkpoint_hooks import CheckpointHook, HookStates, KeepBest
from ext_common.crash_report import write_crash_report
from ext_common.errors import ConfigError, DatasetError, ExtError
from ext_common.evaluation.stopping import EvaluationStopped, evaluate_unless_stopped
from ext_common.hooks import LOG_PERIOD, LossRecorder
from ext_common.interruption import StopRequest, TrainingInterrupted
from ext_common.loader_faults import DeadWorker, explain_dead_worker
from ext_common.micro_batches import MicroBatches, next_micro_batches
from ext_common.modeling.build import build_model
from ext_common.non_finite import NonFiniteStep, image_ids
from ext_common.registries import TRAIN_HOOK_REGISTRY, TRAIN_LOADER_REGISTRY
from ext_common.run_config import RunConfig
from ext_common.solver import build_lr_scheduler, build_optimizer
from ext_common.train_state import RandomState
from ext_common.train_step import Precision, StepOptions, TrainStep

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, Any]]
"""Dataset -> task (``bbox``, ``segm``) -> metric -> number."""


class ExtTrainer(TrainerBase):
    """Model, optimizer, schedule, loader, evaluation and checkpoints from one configuration.

    Every process of the run makes one. Nothing is read from ``OUTPUT_DIR`` before
    :meth:`resume_or_load`.

    Args:
        cfg: complete configuration; not changed.

    Attributes:
        model: the plain model, on its device (never the DistributedDataParallel wrapper).
        train_step: one optimisation step, from a batch to its losses.
        results: of the last evaluation.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.results: Results = {}
        self.stop = StopRequest()
        set_backends(cfg)
        seed = shared_seed(cfg.SEED)
        seed_all_rng(seed)  # the same initial weights, buffers included, in every process
        self.model = build_model(cfg)
        self.model.train()
        seed_all_rng(seed + comm.get_rank())
        _log_size(self.model)
        self.optimizer = build_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        precision = Precision(
            next(self.model.parameters()).device.type,
            enabled=cfg.SOLVER.AMP.ENABLED,
            dtype=cfg.SOLVER.AMP.DTYPE,
        )
        self.data_loader = build_train_loader(cfg)
        self._batches: Iterator[Any] | None = None
        self._last_images: tuple[str, ...] = ()
        self.train_step = TrainStep(
            self.model,
            self.optimizer,
            precision,
            StepOptions(
                find_unused_parameters=cfg.FIND_UNUSED_PARAM,
                check_gradients=cfg.SOLVER.CHECK_GRADIENTS,
                skip_non_finite=cfg.SOLVER.NONFINITE_SKIP,
                on_non_finite=self._report_non_finite,
                stop_asked=lambda: self.stop.asked,
            ),
        )
        parts: dict[str, Any] = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": precision.scaler,
            "train_step": self.train_step,
        }
        if hasattr(self.data_loader, "state_dict"):
            parts["loader"] = self.data_loader
        self._run_config = RunConfig(cfg)
        self.checkpointer = Checkpointer(
            self.model,
            cfg.OUTPUT_DIR,
            parts=parts,
            process_parts={"random": RandomState()},
            conditions={"config": self._run_config},
        )
        self.max_iter = last_iteration(cfg)
        self._recorder = LossRecorder(counts=getattr(self.data_loader, "policy", None))
        self.register_hooks(self.build_hooks())
        self.checkpointer.parts["hooks"] = HookStates(self._hooks)

    def build_hooks(self) -> list[Any]:
        """The hooks, in the order in which they run."""
        cfg = self.cfg

        saving = CheckpointHook(
            self.checkpointer,
            cfg.SOLVER.CHECKPOINT_PERIOD,
            keep_last=cfg.SOLVER.CHECKPOINT_KEEP_LAST,
            on_failure=cfg.SOLVER.CHECKPOINT_FAILURE,
            stop=self._agreed_stop,
        )

        def evaluate_model() -> dict[str, Any]:
            try:
                self.results = evaluate(cfg, self.model, lambda: self.stop.asked)
            except EvaluationStopped:
                self._recorder.flush()
                saving.save_and_stop(f"{self._signal_name()} while evaluating")
            return flat_results(self.results)

        made: list[Any] = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._recorder,
        ]
        if cfg.TEST.PRECISE_BN.ENABLED:
            count = cfg.TEST.PRECISE_BN.NUM_ITER
            batches = first_batches(cfg, count)
            made.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, batches, count))
        for _, build in TRAIN_HOOK_REGISTRY:
            made.extend(build(cfg, self))
        # after the hooks that change the state; in every process, for its random generators
        made.append(saving)
        if cfg.DATASETS.TEST:
            made.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate_model))
        if cfg.SOLVER.CHECKPOINT_KEEP_BEST:
            if not cfg.DATASETS.TEST:
                raise ConfigError(
                    "there is no test set whose scores could be compared",
                    where="SOLVER.CHECKPOINT_KEEP_BEST",
                    fix="name one in DATASETS.TEST",
                )
            metric = cfg.SOLVER.CHECKPOINT_KEEP_BEST
            made.append(KeepBest(self.checkpointer, metric, lambda: self.results))
        if comm.is_main_process():
            writers = default_writers(cfg.OUTPUT_DIR, self.max_iter)
            made.append(hooks.PeriodicWriter(writers, period=LOG_PERIOD))
        return made

    def resume_or_load(
        self,
        *,
        resume: bool,
        allow_partial: Sequence[str] = (),
        unsafe: bool = False,
        allow_change: Sequence[str] = (),
    ) -> None:
        """Continue the run in ``OUTPUT_DIR``, or start from ``MODEL.WEIGHTS`` (may be empty).

        Args:
            resume: take the newest whole checkpoint of ``OUTPUT_DIR``, if there is one.
            allow_partial, unsafe: for ``MODEL.WEIGHTS``, see ``checkpoint.load_model_weights``.
            allow_change: patterns of config keys that may differ from those of the run that is
                continued, besides ``run_config.FREE_KEYS``.

        Raises:
            WeightsError: weights that cannot be used.
            ConfigError: the run to continue had another configuration.
        """
        self._run_config.allowed = tuple(allow_change)
        restart = self.cfg.SOLVER.RESET_ITER
        hyper = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        skip = ("scheduler", "loader", "random", "train_step", "hooks") if restart else ()
        rest = self.checkpointer.resume(skip=skip) if resume else None
        if rest is None:
            if self.cfg.MODEL.WEIGHTS:
                load_model_weights(
                    self.model, self.cfg.MODEL.WEIGHTS, allow_partial=allow_partial, unsafe=unsafe
                )
            return
        if restart:
            logger.info("SOLVER.RESET_ITER: weights and optimizer are kept, the schedule restarts")
            for group, fresh in zip(self.optimizer.param_groups, hyper, strict=True):
                group.update(fresh)
        else:
            self.start_iter = int(rest["iteration"]) + 1

    def train(self) -> None:
        """Train up to the last iteration, with evaluation and checkpoints on the way.

        Raises:
            ExtError: bad data, non-finite losses, a disk that is full.
            TrainingInterrupted: after SIGTERM or SIGINT, when the checkpoint is saved.
        """
        if self.start_iter >= self.max_iter:
            logger.info("Nothing left to train: %d iterations are done", self.start_iter)
            if self.cfg.DATASETS.TEST:
                self.results = evaluate(self.cfg, self.model)
            return
        explained = explain_dead_worker(
            lambda: f"at iteration {self.iter}", lambda: self._last_images
        )
        with explained, _expected_errors_without_traceback(), self.stop.listening():
            try:
                super().train(self.start_iter, self.max_iter)
            finally:
                self._batches = None  # loader workers end here, not when the program does

    def run_step(self) -> None:
        """One batch: detectron2's loop calls this."""
        batch, data_time = self._next_batch()
        losses = self.train_step(batch, self.iter)
        if losses is not None:
            self._recorder.record(self.iter, losses, data_time)

    def _next_batch(self) -> tuple[Any, float]:
        start = time.perf_counter()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        batch = next_micro_batches(self._batches, self.cfg.SOLVER.ACCUMULATE)
        if batch is None:
            raise DatasetError(
                f"the training loader ended before iteration {self.iter}",
                fix="a training loader must not end: see TRAIN_LOADER_REGISTRY in docs/training.md",
            )
        together = isinstance(batch, MicroBatches)
        self._last_images = image_ids(batch.samples() if together else batch)
        return batch, time.perf_counter() - start

    def _report_non_finite(self, step: NonFiniteStep) -> None:
        # an error that only one process has is written by that one
        if comm.is_main_process() or step.reason:
            write_crash_report(step, self.cfg, rank=comm.get_rank())

    def _agreed_stop(self) -> str:
        """The signal to stop for, once all processes know; then the metrics are handed over."""
        if not self.train_step.stop_agreed:
            return ""
        self._recorder.flush()
        return self._signal_name()

    def _signal_name(self) -> str:
        return self.stop.signal_name or "a signal to another process"

    def after_train(self) -> None:
        """Run the hooks' last part; after an error only those that close files."""
        if self.iter >= self.max_iter:
            try:
                super().after_train()
            except TrainingInterrupted:
                self._close_writers()
                raise
            return
        self.storage.iter = self.iter
        if comm.get_world_size() == 1:
            self._recorder.flush()
        self._close_writers()

    def _close_writers(self) -> None:
        for hook in self._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                hook.after_train()


def build_train_loader(cfg: CfgNode) -> Any:
    """The training batches: of the loader registered for ``DATALOADER.SAMPLER_TRAIN``, or ours."""
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler in TRAIN_LOADER_REGISTRY:
        return TRAIN_LOADER_REGISTRY.get(sampler)(cfg)
    from ext_common.data.loader import build_train_loader as build_common_loader

    return build_common_loader(cfg)


def first_batches(cfg: CfgNode, count: int) -> Iterator[Any]:
    """The first ``count`` training batches, again and again.

    What is measured on them does not depend on how often a run was interrupted.
    """
    while True:
        yield from itertools.islice(build_train_loader(cfg), count)


def evaluate(
    cfg: CfgNode, model: nn.Module, stop_asked: Callable[[], bool] = lambda: False
) -> Results:
    """Score a model on every dataset of ``DATASETS.TEST``; all processes take part.

    Args:
        cfg: complete configuration.
        model: may be wrapped.
        stop_asked: looked at between two batches: whether this process was asked to stop.

    Returns:
        Results by dataset; complete in the main process, empty in the others.

    Raises:
        EvaluationStopped: in every process, when one was asked to stop.
    """
    from ext_common.data.loader import build_test_loader
    from ext_common.evaluation.build import build_evaluator
    from ext_common.evaluation.vocabularies import with_test_vocabularies

    model = unwrap_model(model)
    results: Results = OrderedDict()
    for name, tested in with_test_vocabularies(cfg, model):
        folder = Path(cfg.OUTPUT_DIR) / f"inference_{name}"
        # before the loader: an unknown dataset or evaluator is told without reading images
        evaluator = build_evaluator(cfg, name, str(folder))
        loader = build_test_loader(cfg, name)
        scores = evaluate_unless_stopped(tested, loader, evaluator, stop_asked)
        if scores:
            results[name] = dict(scores)
    return results


def flat_results(results: Results) -> dict[str, Any]:
    """As detectron2 names metrics: without the dataset's name where there is only one."""
    return dict(next(iter(results.values()))) if len(results) == 1 else dict(results)


def last_iteration(cfg: CfgNode) -> int:
    """Where training stops: ``SOLVER.TRAIN_ITER`` if it is set, else ``MAX_ITER``."""
    return int(cfg.SOLVER.TRAIN_ITER if cfg.SOLVER.TRAIN_ITER >= 0 else cfg.SOLVER.MAX_ITER)


def shared_seed(seed: int) -> int:
    """``cfg.SEED``, or a random one that is the same in all processes if that is negative."""
    return int(seed if seed >= 0 else comm.shared_random_seed())


def set_backends(cfg: CfgNode) -> None:
    """torch's process-wide switches that detectron2's configuration has keys for."""
    torch.backends.cudnn.benchmark = bool(cfg.CUDNN_BENCHMARK)
    precision = cfg.get("FLOAT32_PRECISION", "")  # detectron2 main
    if precision:
        torch.set_float32_matmul_precision(precision)


def _log_size(model: nn.Module) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    logger.info(
        "%s: %.2f M parameters, %.2f M of them trained",
        type(model).__name__,
        sum(size for size, _ in sizes) / 1e6,
        sum(size for size, trained in sizes if trained) / 1e6,
    )


@contextmanager
def _expected_errors_without_traceback() -> Iterator[None]:
    """detectron2's loop logs every exception with its traceback; ours explain themselves."""
    loop_logger = logging.getLogger("detectron2.engine.train_loop")

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ExtError) or (error and DeadWorker.behind(error)):
            record.msg, record.args = "Training stopped: %s", (error,)
            record.exc_info = None
        return True

    loop_logger.addFilter(shorten)
    try:
        yield
    finally:
        loop_logger.removeFilter(shorten)
