"""Image-text data under the names of ``DATASETS.TRAIN``, as all other datasets are known."""

from __future__ import annotations

import functools

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ext_common.registries import CONFIG_CHECK_REGISTRY
from regionclip_ext.data.pair_sources import entries_of, open_pairs
from regionclip_ext.data.pairs import PairRecords

SAMPLER_NAME = "ImageTextPairs"
"""``DATALOADER.SAMPLER_TRAIN`` of pretraining."""


@CONFIG_CHECK_REGISTRY.register()
def check_caption_pairs(cfg: CfgNode, training: bool) -> None:
    """Register the names of image-text data that are not registered yet; no file is opened.

    Runs before the common check of datasets, which asks for every name: checks go by their names.

    Raises:
        ConfigError: another number of names than of kinds and paths.
    """
    asked = cfg.DATALOADER.SAMPLER_TRAIN == SAMPLER_NAME or cfg.DATASETS.FACTORY_TRAIN
    if not training or not asked:
        return
    for name, kind, paths in entries_of(cfg):
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, functools.partial(_records, kind, paths))


def _records(kind: str, paths: str) -> PairRecords:
    return PairRecords(open_pairs(kind, paths))
