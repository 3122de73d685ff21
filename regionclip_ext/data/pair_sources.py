"""The image-text data that a configuration names (specification 7).

``DATASETS.TRAIN`` has names for messages, ``FACTORY_TRAIN`` the kind of each and ``PATH_TRAIN`` where
it is; several paths are joined by "+".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ext_common.errors import ConfigError
from regionclip_ext.data.coco_pairs import CocoCaptionPairs
from regionclip_ext.data.pairs import PairRecords, PairSource
from regionclip_ext.data.tar_pairs import find_tar_pairs
from regionclip_ext.data.tsv_pairs import find_tsv_pairs

Paths = Sequence[Path]

TSV, COCO, TAR = "CLIPImgTxtPairTSVDataset", "CocoCaptions", "TarCaptions"


def _tsv(paths: Paths) -> list[PairSource]:
    return [pairs for path in paths for pairs in find_tsv_pairs(path)]


def _tar(paths: Paths) -> list[PairSource]:
    return [pairs for path in paths for pairs in find_tar_pairs(path)]


def _coco(paths: Paths) -> list[PairSource]:
    if len(paths) > 2:
        raise ConfigError(
            f"{len(paths)} paths for one captions file",
            where="DATASETS.PATH_TRAIN",
            fix="CAPTIONS.json, or CAPTIONS.json+IMAGE_FOLDER",
        )
    return [CocoCaptionPairs(*paths)]


_FACTORIES: dict[str, Callable[[Paths], list[PairSource]]] = {TSV: _tsv, COCO: _coco, TAR: _tar}
KINDS = tuple(_FACTORIES)
"""Values of ``DATASETS.FACTORY_TRAIN``: TSV files, COCO's captions JSON, tar archives."""


def open_pairs(kind: str, paths: str) -> list[PairSource]:
    """The sources of one entry.

    Args:
        kind: one of :data:`KINDS`.
        paths: files or folders joined by "+"; what does not exist is also looked for below
            ``DETECTRON2_DATASETS``.

    Raises:
        ConfigError: an unknown kind, or no path.
        DatasetError: files that are missing or do not belong together.
    """
    if kind not in _FACTORIES:
        raise ConfigError(
            f"unknown kind of image-text data {kind!r}",
            where="DATASETS.FACTORY_TRAIN",
            fix=f"one of {', '.join(KINDS)}",
        )
    found = [_resolved(part.strip()) for part in paths.split("+") if part.strip()]
    if not found:
        raise ConfigError("no path", where="DATASETS.PATH_TRAIN", fix="name a file or folder")
    return _FACTORIES[kind](found)


def load_pair_records(cfg: CfgNode) -> PairRecords:
    """All image-text pairs of ``DATASETS.TRAIN``.

    Raises:
        ConfigError, DatasetError: see :func:`entries_of` and :func:`open_pairs`.
    """
    return PairRecords(
        [source for _, kind, paths in entries_of(cfg) for source in open_pairs(kind, paths)]
    )


def entries_of(cfg: CfgNode) -> list[tuple[str, str, str]]:
    """Name, kind and paths of every entry.

    Raises:
        ConfigError: there are none, or not as many of each.
    """
    data = cfg.DATASETS
    counts = {len(data.TRAIN), len(data.FACTORY_TRAIN), len(data.PATH_TRAIN)}
    if counts == {0} or len(counts) > 1:
        raise ConfigError(
            f"{len(data.TRAIN)} names, {len(data.FACTORY_TRAIN)} kinds and "
            f"{len(data.PATH_TRAIN)} paths of image-text data",
            where="DATASETS.TRAIN, FACTORY_TRAIN, PATH_TRAIN",
            fix="give one of each for every dataset",
        )
    return list(zip(data.TRAIN, data.FACTORY_TRAIN, data.PATH_TRAIN, strict=True))


def _resolved(text: str) -> Path:
    path = Path(text).expanduser()
    root = os.environ.get("DETECTRON2_DATASETS")
    if root and not path.is_absolute() and not path.exists() and (Path(root) / path).exists():
        return Path(root) / path
    return path
