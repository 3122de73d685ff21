"""Loaders for training (deterministic, resumable) and for evaluation."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ext_common.data.batching import BatchPlan, PlanState, Ticket, batch_per_process
from ext_common.data.dataset_checks import check_test_dataset
from ext_common.data.dataset_spec import load_dataset
from ext_common.data.fetching import Mapper, Sample, SampleFetcher, as_list, raise_errors
from ext_common.data.indexing import Indexing
from ext_common.data.mapper import DetectionMapper
from ext_common.data.read_watch import Patience
from ext_common.data.records import Records, aspects, load_records, object_classes, serialised
from ext_common.data.sampling import (
    IndexStream,
    PermutationStream,
    RepeatFactorStream,
    repeat_factors,
)
from ext_common.errors import ConfigError
from ext_common.images import BadSamplePolicy
from ext_common.loader_worker import prepare_loader_worker
from ext_common.registries import TRAIN_LOADER_REGISTRY

logger = logging.getLogger(__name__)


class TrainLoader:
    """Endless batches of this process, and the place to continue from.

    What a batch contains is a pure function of the plan's seed and of what was consumed before: it
    does not depend on ``num_workers``. ``state_dict()`` counts the batches that were handed out,
    not those that workers have fetched ahead, and is the same on all processes.

    Args:
        fetcher: reads samples.
        plan: which samples form which batch.
        rank: this process.
        num_workers: worker processes; 0 = read in this one.
        timeout: seconds for reading one sample; 0 = no limit.
    """

    def __init__(
        self,
        fetcher: SampleFetcher,
        plan: BatchPlan,
        *,
        rank: int = 0,
        num_workers: int = 0,
        timeout: float = 0.0,
    ) -> None:
        self.fetcher = fetcher
        self.rank = rank
        self.num_workers = num_workers
        self.timeout = timeout
        self._plan = plan
        self._state = PlanState()
        self._running = False

    @property
    def policy(self) -> BadSamplePolicy:
        """Counts of bad samples so far."""
        return self.fetcher.policy

    def __iter__(self) -> Iterator[list[Sample]]:
        """Batches from the current state on; starts working with the first one."""
        self._running = True
        in_flight: deque[PlanState] = deque()
        tickets = _Tickets(self._plan, self._state, self.rank, in_flight)
        for batch in _read(self.fetcher, tickets, self.num_workers, self.timeout):
            self._state = in_flight.popleft()
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: the seed, the position in the global order and the samples in waiting."""
        return self._plan.state_dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches that the saved loader had handed out.

        The seed is taken from the state. With another number of processes the global order of
        samples goes on, and (with the same total batch size) so does the content of every step.

        Raises:
            DatasetError: the state is of other training data.
            RuntimeError: batches were taken from this loader before.
        """
        if self._running:
            raise RuntimeError("load_state_dict() after the first batch")
        self._plan, self._state = self._plan.restored(state)
        self.fetcher.seed = self._plan.stream.seed


class _Tickets:
    """Batch sampler of one process that notes the state after each batch it gives out."""

    def __init__(
        self, plan: BatchPlan, state: PlanState, rank: int, in_flight: deque[PlanState]
    ) -> None:
        self._plan = plan
        self._state = state
        self._rank = rank
        self._in_flight = in_flight

    def __iter__(self) -> Iterator[list[Ticket]]:
        for batches, state in self._plan.steps(self._state):
            self._in_flight.append(state)
            yield batches[self._rank]


def loader_seed(cfg: CfgNode) -> int:
    """``cfg.SEED``; where that is negative, a random seed that all processes share."""
    return int(cfg.SEED) if cfg.SEED >= 0 else int(comm.shared_random_seed())


def make_train_loader(
    cfg: CfgNode, records: Records, mapper: Mapper, plan: BatchPlan
) -> TrainLoader:
    """A loader with the policy and the number of workers of the configuration."""
    fetcher = SampleFetcher(
        serialised(records),
        mapper,
        seed=plan.stream.seed,
        groups_N=plan.groups_N,
        policy=BadSamplePolicy.from_config(cfg),
    )
    return TrainLoader(
        fetcher,
        plan,
        rank=comm.get_rank(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT_SECONDS,
    )


def plain_plan(cfg: CfgNode, records: Records, stream: IndexStream) -> BatchPlan:
    """Batches of ``SOLVER.IMS_PER_BATCH`` images over all processes, by aspect where asked.

    All processes take parts of one global batch, so that the samples of a step are the same for
    any number of processes.

    Raises:
        ConfigError: a batch size that does not fit the processes.
    """
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups_N = aspects(records)
    else:
        groups_N = np.zeros(len(records), dtype=np.int64)
    processes = comm.get_world_size()
    size = batch_per_process(cfg.SOLVER.IMS_PER_BATCH, processes)
    return BatchPlan(stream, groups_N, [size] * 2, processes=processes)


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """The loader for ``DATALOADER.SAMPLER_TRAIN`` TrainingSampler or RepeatFactorTrainingSampler.

    Raises:
        ConfigError, DatasetError: settings or datasets that cannot work.
    """
    records = load_records(cfg)
    stream = _stream(cfg, records)
    mapper = DetectionMapper(cfg, is_train=True)
    return make_train_loader(cfg, records, mapper, plain_plan(cfg, records, stream))


class TestLoader:
    """Every record of a dataset once, in order, divided among the processes.

    Args:
        fetcher: reads samples.
        batch_size: images per batch; the last batch may be smaller.
        num_workers: worker processes; 0 = read in this one.
        timeout: seconds for reading one sample; 0 = no limit.
    """

    __test__ = False  # not a test class of pytest

    def __init__(
        self,
        fetcher: SampleFetcher,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        timeout: float = 0.0,
    ) -> None:
        self._fetcher = fetcher
        self._num_workers = num_workers
        self._timeout = timeout
        self._batches = _TestTickets(len(fetcher), batch_size)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        """Lists of test samples; an unreadable image is an error."""
        return _read(self._fetcher, self._batches, self._num_workers, self._timeout)


class _TestTickets:
    """Batches of this process' part of a test set."""

    def __init__(self, size: int, batch_size: int) -> None:
        self._indices = list(InferenceSampler(size))
        self._starts = range(0, len(self._indices), batch_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for start in self._starts:
            own = self._indices[start : start + self._batch_size]
            yield [Ticket(index, index) for index in own]


def build_test_loader(cfg: CfgNode, name: str, *, batch_size: int = 1) -> TestLoader:
    """The loader that evaluates a dataset.

    A bad image is an error here, whatever ``INPUT.BAD_SAMPLE_POLICY``: results are comparable only
    on the whole set.

    Raises:
        DatasetError: unknown dataset, missing files, or classes that do not fit the model.
    """
    check_test_dataset(cfg, name)
    fetcher = SampleFetcher(
        serialised(load_dataset(name, Indexing.from_config(cfg))),
        DetectionMapper(cfg, is_train=False),
        seed=0,
    )
    return TestLoader(
        fetcher,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT_SECONDS,
    )


def _read(
    fetcher: SampleFetcher, tickets: Any, num_workers: int, timeout: float
) -> Iterator[list[Sample]]:
    """Batches of samples for batches of tickets."""
    patience = Patience(timeout, fetcher.watch, fetcher.name)
    loader = DataLoader(
        fetcher,
        batch_sampler=tickets,
        num_workers=num_workers,
        collate_fn=as_list,
        # its own, so that making workers does not advance the training's random numbers
        generator=torch.Generator(),
        timeout=patience.turn if num_workers else 0,
        worker_init_fn=prepare_loader_worker,
    )
    return raise_errors(patience.batches(loader, workers=num_workers))


def _stream(cfg: CfgNode, records: Records) -> IndexStream:
    options = cfg.DATALOADER
    seed = loader_seed(cfg)
    if options.SAMPLER_TRAIN == "TrainingSampler":
        return PermutationStream(len(records), seed)
    if options.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors_N = repeat_factors(
            object_classes(records),
            options.REPEAT_THRESHOLD,
            root=options.get("REPEAT_SQRT", True),
        )
        return RepeatFactorStream(factors_N, seed)
    raise ConfigError(
        f"unknown sampler {options.SAMPLER_TRAIN!r}",
        where="DATALOADER.SAMPLER_TRAIN",
        fix=f"one of {', '.join(sorted(name for name, _ in TRAIN_LOADER_REGISTRY))}",
    )


for _sampler in ("TrainingSampler", "RepeatFactorTrainingSampler"):
    # the registry's public method takes the name of the function
    TRAIN_LOADER_REGISTRY._do_register(_sampler, build_train_loader)
