"""ImageNet-21k in training: images that lie in tar archives (specification 6.4)."""

from __future__ import annotations

from detectron2.config import CfgNode

from ext_common.tar_list import read_tar_counts, read_tar_list
from ext_common.tar_shards import TarDataset, TarRecordReader


def build_tar_reader(cfg: CfgNode) -> TarRecordReader | None:
    """What reads the records with a ``tar_index``, for a mapper's ``read_record``.

    The archives are those of ``DATALOADER.TARFILE_PATH`` in that order, their indices lie in
    ``DATALOADER.TAR_INDEX_DIR``; archives without an index are indexed first. Bad images, also those
    that an archive has lost since the list was made, are for ``INPUT.BAD_SAMPLE_POLICY``.

    Returns:
        None without ``DATALOADER.USE_TAR_DATASET``.

    Raises:
        DatasetError: no list, or archives that cannot be indexed.
    """
    if not cfg.DATALOADER.USE_TAR_DATASET:
        return None
    dataset = TarDataset(
        read_tar_list(cfg.DATALOADER.TARFILE_PATH),
        counts=read_tar_counts(cfg.DATALOADER.TARFILE_PATH),
        index_dir=cfg.DATALOADER.TAR_INDEX_DIR,
        image_format=cfg.INPUT.FORMAT,
        max_pixels=cfg.INPUT.MAX_PIXELS,
    )
    return TarRecordReader(dataset)
