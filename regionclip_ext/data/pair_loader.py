"""The training loader of image-text pairs, on the seeded, resumable machinery of all packages."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from ext_common.data.batching import BatchPlan, batch_per_process
from ext_common.data.fetching import SampleFetcher
from ext_common.data.loader import TrainLoader, loader_seed
from ext_common.data.sampling import PermutationStream
from ext_common.images import BadSamplePolicy
from ext_common.registries import TRAIN_LOADER_REGISTRY
from regionclip_ext.concepts.templates import SCENE_TEMPLATES
from regionclip_ext.data.pair_mapper import PairMapper
from regionclip_ext.data.pair_names import SAMPLER_NAME
from regionclip_ext.data.pair_sources import load_pair_records
from regionclip_ext.data.resize import ShortSideResize
from regionclip_ext.proposals.store import ProposalStore


def build_pair_loader(cfg: CfgNode) -> TrainLoader:
    """The loader for ``DATALOADER.SAMPLER_TRAIN`` ImageTextPairs.

    Batches of ``SOLVER.IMS_PER_BATCH`` images over all processes in a new random order each time
    round, without grouping by aspect (specification 3.5).

    Raises:
        ConfigError, DatasetError: settings or data that cannot work.
    """
    records = load_pair_records(cfg)
    mapper = PairMapper(
        records,
        ShortSideResize(cfg.AUG.TRAIN.IMAGE_SIZE[0], cfg.AUG.TRAIN.MAX_SIZE, cfg.AUG.INTERPOLATION),
        SCENE_TEMPLATES,
        context=cfg.MODEL.CLIP.LANG_ENCODER.CONTEXT,
        flip=0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0,
        proposals=stored_proposals(cfg),
        max_pixels=cfg.INPUT.MAX_PIXELS,
    )
    processes = comm.get_world_size()
    size = batch_per_process(cfg.SOLVER.IMS_PER_BATCH, processes)
    stream = PermutationStream(len(records), loader_seed(cfg))
    groups_N = np.zeros(len(records), dtype=np.int8)
    plan = BatchPlan(stream, groups_N, [size], processes=processes)
    fetcher = SampleFetcher(
        records,
        mapper,
        seed=stream.seed,
        groups_N=groups_N,
        policy=BadSamplePolicy.from_config(cfg),
    )
    return TrainLoader(
        fetcher,
        plan,
        rank=comm.get_rank(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT_SECONDS,
    )


def stored_proposals(cfg: CfgNode) -> ProposalStore | None:
    """The regions of ``MODEL.CLIP.PROPOSAL_FILE``, where regions come from a file."""
    clip = cfg.MODEL.CLIP
    return ProposalStore(clip.PROPOSAL_FILE) if clip.CROP_REGION_TYPE == "FILE" else None


# the registry's public method takes the name of the function
TRAIN_LOADER_REGISTRY._do_register(SAMPLER_NAME, build_pair_loader)
