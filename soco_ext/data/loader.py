"""The training loader of SoCo, ``DATALOADER.SAMPLER_TRAIN: SoCoViews``.

As the other loaders: what a batch contains is a pure function of seed and position, for any number of
workers, and a resumed run goes on with the batch that it would have had. Batches are always full: the
order of images is endless, and one that does not fill a batch at the end of an epoch goes into the next.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from numpy.typing import NDArray

from ext_common.data.batching import BatchPlan, batch_per_process
from ext_common.data.box_file import BoxFile
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.fetching import SampleFetcher
from ext_common.data.loader import TrainLoader, loader_seed
from ext_common.data.sampling import PermutationStream
from ext_common.data.training_records import Part
from ext_common.data.unlabelled_images import images_of_tars
from ext_common.errors import DatasetError
from ext_common.images import BadSamplePolicy, printable
from ext_common.registries import TRAIN_LOADER_REGISTRY
from ext_common.tar_shards import TarRecordReader
from soco_ext.data.proposal_lookup import NamedImage, ProposalLookup, image_name
from soco_ext.data.training_images import TrainingImages, training_images
from soco_ext.data.view_maker import ViewMaker
from soco_ext.data.view_mapper import ViewMapper
from soco_ext.data.view_options import ProposalOptions, ViewOptions

logger = logging.getLogger(__name__)


def build_view_loader(cfg: CfgNode) -> TrainLoader:
    """Batches of ``SOLVER.IMS_PER_BATCH`` samples over all processes.

    Raises:
        ConfigError: settings that cannot work.
        DatasetError: datasets or proposals that cannot be used, or fewer images than a batch has.
    """
    images = training_images(cfg)
    mapper = build_view_mapper(cfg, images)
    records = images.records
    processes = comm.get_world_size()
    size = batch_per_process(cfg.SOLVER.IMS_PER_BATCH, processes)
    if len(records) < cfg.SOLVER.IMS_PER_BATCH:
        raise DatasetError(
            f"{len(records)} images are fewer than a batch of {cfg.SOLVER.IMS_PER_BATCH}",
            where="SOLVER.IMS_PER_BATCH",
            fix="lower it, or name more datasets",
        )
    groups_N = np.zeros(len(records), dtype=np.int64)
    stream = PermutationStream(len(records), loader_seed(cfg))
    plan = BatchPlan(stream, groups_N, [size], processes=processes)
    fetcher = SampleFetcher(
        records, mapper, seed=stream.seed, policy=BadSamplePolicy.from_config(cfg)
    )
    return TrainLoader(
        fetcher,
        plan,
        rank=comm.get_rank(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        timeout=cfg.DATALOADER.TIMEOUT_SECONDS,
    )


def build_view_mapper(cfg: CfgNode, images: TrainingImages) -> ViewMapper:
    """The mapper of a configuration, its proposals checked against the images.

    Raises:
        ConfigError, DatasetError: see :func:`build_view_loader`.
    """
    lookup = ProposalLookup(ProposalOptions.from_config(cfg))
    roots = ("",) * len(images.names)
    if lookup.file is not None:
        roots = images.roots()
        # half a minute for a million
        logger.info("looking up the proposals of %d images", len(images.records))
        found = [
            lookup.check_images(_named(part, root))
            for part, root in zip(images.records.parts, roots, strict=True)
        ]
        _refuse_shared_boxes(images, roots, lookup.file, found)
    return ViewMapper(
        ViewMaker(ViewOptions.from_config(cfg)),
        lookup,
        roots=roots,
        tars=_tar_readers(images),
        max_pixels=cfg.INPUT.MAX_PIXELS,
    )


def _refuse_shared_boxes(
    images: TrainingImages,
    roots: Sequence[str],
    file: BoxFile,
    found: Sequence[NDArray[np.int64]],
) -> None:
    """Boxes are found by names, which two folders may have in common.

    Args:
        images: of the training.
        roots: folder of each dataset.
        file: of proposals.
        found: places in the file, of the images of each dataset.

    Raises:
        DatasetError: images of two folders have the boxes of one.
    """
    for one, other in combinations(range(len(roots)), 2):
        if roots[one] == roots[other]:
            continue
        shared = np.intersect1d(found[one], found[other])
        if len(shared):
            raise DatasetError(
                f"{printable(file.name(int(shared[0])))} is in {printable(roots[one])} (dataset "
                f"{images.names[one]!r}) and in {printable(roots[other])} "
                f"({images.names[other]!r}), and the file has boxes for one of them",
                where=printable(file.path),
                fix="make the file from a folder that holds both, and register both with that "
                "folder as their images",
            )


def _named(part: Part, root: str) -> Iterator[NamedImage]:
    for place in range(len(part)):
        record = part[place]
        size_hw = (record.get("height") or 0, record.get("width") or 0)
        yield NamedImage(
            image_name(record, root), size_hw if all(size_hw) else None, record.get("file_name", "")
        )


def _tar_readers(images: TrainingImages) -> dict[int, TarRecordReader]:
    readers = {}
    for source, name in enumerate(images.names):
        registered = DatasetCatalog[name]
        if isinstance(registered, DatasetSpec) and registered.type == "image_tars":
            readers[source] = TarRecordReader(images_of_tars(registered.images)[1])
    return readers


# the registry's public method takes the name of the function
TRAIN_LOADER_REGISTRY._do_register("SoCoViews", build_view_loader)
