"""ImageNet-21k from one tar archive per synset (specification 6.4, 6.6).

Listing 13 million images takes hours, most of them for the image sizes. Those of every archive are
kept in a file as soon as they are known, so that an interrupted run goes on where it was.

Legend: M files of one archive.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detic_ext.data.preparation.synset_table import Synset, synset_of
from ext_common.atomic_file import write_bytes
from ext_common.data.annotation_checks import refuse
from ext_common.errors import ImageError
from ext_common.images import image_size, printable
from ext_common.tar_archive import TarArchive
from ext_common.tar_index_file import open_index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SizeTask:
    """One archive whose image sizes are wanted.

    Args:
        tar: the archive.
        index_dir: folder of the tar indices; None = beside the archives.
        kept: file that its sizes are kept in.
    """

    tar: Path
    index_dir: Path | None
    kept: Path


@dataclass(frozen=True)
class ArchiveSizes:
    """Image sizes of one archive.

    Args:
        sizes_M2: int64 (height, width) in pixels, upright; 0, 0 where a file is no image.
        bad: "archive.tar:name (reason)" of those.
    """

    sizes_M2: NDArray[np.int64]
    bad: tuple[str, ...]


def archive_sizes(task: SizeTask) -> ArchiveSizes:
    """The image sizes of an archive: kept ones of its present state, else read and kept.

    Raises:
        DatasetError: the archive cannot be indexed or read.
        OSError: the sizes cannot be kept.
    """
    index = open_index(task.tar, task.index_dir)
    stamp = [index.state.size, index.state.mtime_ns, len(index)]
    kept = _kept(task.kept, stamp)
    if kept is not None:
        return kept
    archive = TarArchive(task.tar, index)
    sizes, bad = [], []
    for member in range(len(archive)):
        where = archive.where(member)
        try:
            sizes.append(image_size(archive.read_unpacked(member), name=where))
        except ImageError as error:
            sizes.append((0, 0))
            bad.append(f"{where} ({error.what})")
    task.kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"stamp": stamp, "sizes": sizes, "bad": bad}
    write_bytes(task.kept, json.dumps(content).encode("utf-8"))
    return _sizes(content)


def categories_of(tars: Sequence[Path], synsets: Mapping[str, Synset]) -> list[dict[str, Any]]:
    """The class of every archive (named after its synset), with ids 1, 2, ... in this order.

    Raises:
        DatasetError: an archive whose name is no known synset.
    """
    repeated = [stem for stem, times in Counter(tar.stem for tar in tars).items() if times > 1]
    refuse(repeated, "synsets with more than one archive", where=str(tars[0].parent))
    refuse(
        [printable(tar.name) for tar in tars if tar.stem not in synsets],
        "archives that are not named after a synset of the table",
        where=str(tars[0].parent),
        fix="one archive per synset is needed, WNID.tar",
    )
    return [
        synset_of(synsets, tar.stem, where=str(tar)).category(number)
        for number, tar in enumerate(tars, start=1)
    ]


def image_records(sizes: Sequence[NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
    """Records of all images, archive by archive; files that are no images leave a gap.

    Args:
        sizes: ``sizes_M2`` of every archive.

    Yields:
        ``id`` (index + 1), ``pos_category_ids`` (number of the archive + 1), ``height``, ``width``,
        ``tar_index`` (index over all archives).
    """
    index = 0
    for number, sizes_M2 in enumerate(sizes, start=1):
        for height, width in sizes_M2.tolist():
            if height and width:
                yield {
                    "id": index + 1,
                    "pos_category_ids": [number],
                    "height": height,
                    "width": width,
                    "tar_index": index,
                }
            index += 1


def _kept(path: Path, stamp: Sequence[int]) -> ArchiveSizes | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["stamp"] != list(stamp):
            return None
        return _sizes(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): the archive is read again", path, error)
        return None


def _sizes(content: Mapping[str, Any]) -> ArchiveSizes:
    sizes_M2 = np.array(content["sizes"], dtype=np.int64).reshape(-1, 2)
    if len(sizes_M2) != content["stamp"][2]:
        raise ValueError(f"{len(sizes_M2)} sizes for {content['stamp'][2]} files")
    return ArchiveSizes(sizes_M2, tuple(content["bad"]))
