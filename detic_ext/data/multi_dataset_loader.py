"""The training loader of several datasets with different annotations (specification 6.1)."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from numpy.typing import NDArray

from detic_ext.data.detic_mapper import build_detic_mapper
from detic_ext.data.multi_dataset_sampler import multi_dataset_weights, source_repeat_factors
from ext_common.data.batching import BatchPlan, batch_per_process
from ext_common.data.loader import TrainLoader, loader_seed, make_train_loader, plain_plan
from ext_common.data.records import Records, aspects, load_records, sources
from ext_common.data.sampling import IndexStream, WeightedStream
from ext_common.data.training_records import TrainingRecords
from ext_common.registries import TRAIN_LOADER_REGISTRY

SAMPLER_NAME = "MultiDatasetSampler"


def build_multi_dataset_loader(cfg: CfgNode) -> TrainLoader:
    """The loader for ``DATALOADER.SAMPLER_TRAIN`` MultiDatasetSampler.

    Raises:
        ConfigError, DatasetError: settings or datasets that cannot work.
    """
    # the mask loss looks at each image's annotations, so datasets of boxes alone can take part
    records = load_records(cfg, some_without_masks=True)
    stream = WeightedStream(_weights(cfg, records), loader_seed(cfg))
    if cfg.DATALOADER.MULTI_DATASET_GROUPING:
        plan = grouped_plan(cfg, records, stream)
    else:
        plan = plain_plan(cfg, records, stream)
    return make_train_loader(cfg, records, build_detic_mapper(cfg), plan)


def grouped_plan(cfg: CfgNode, records: Records, stream: IndexStream) -> BatchPlan:
    """Batches of one dataset and one aspect each.

    A batch has ``DATASET_BS[source]`` images per process with ``USE_DIFF_BS_SIZE``, else
    ``SOLVER.IMS_PER_BATCH`` divided among the processes. With ``SAME_DATASET_PER_STEP`` all
    processes take the same dataset in a step.
    """
    options = cfg.DATALOADER
    processes = comm.get_world_size()
    count = len(cfg.DATASETS.TRAIN)
    if options.USE_DIFF_BS_SIZE:
        sizes_S = [int(size) for size in options.DATASET_BS[:count]]
    else:
        sizes_S = [batch_per_process(cfg.SOLVER.IMS_PER_BATCH, processes)] * count
    return BatchPlan(
        stream,
        groups_of(sources(records), aspects(records)),
        np.repeat(sizes_S, 2).tolist(),
        processes=processes,
        same_group=options.SAME_DATASET_PER_STEP,
    )


def groups_of(sources_N: NDArray[np.int64], aspects_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the (dataset, aspect) bucket of every record: 2 * dataset + aspect."""
    return sources_N * 2 + aspects_N


def _weights(cfg: CfgNode, records: TrainingRecords) -> NDArray[np.float64]:
    options = cfg.DATALOADER
    count = len(cfg.DATASETS.TRAIN)
    sources_N = sources(records)
    factors_S = [
        source_repeat_factors(
            records.of_source(source),
            options.DATASET_ANN[source],
            options.REPEAT_THRESHOLD,
        )
        if options.USE_RFS[source]
        else None
        for source in range(count)
    ]
    return multi_dataset_weights(sources_N, options.DATASET_RATIO[:count], factors_S)


# the registry's public method takes the name of the function
TRAIN_LOADER_REGISTRY._do_register(SAMPLER_NAME, build_multi_dataset_loader)
