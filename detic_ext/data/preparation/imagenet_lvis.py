"""ImageNet-LVIS: the ImageNet-21k synsets that are LVIS classes (specification 6.6)."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detic_ext.data.preparation.content_checks import by_synset
from detic_ext.data.preparation.synset_table import Synset, synset_of
from ext_common.data.annotation_checks import refuse
from ext_common.data.class_folders import FolderOptions, import_class_folders
from ext_common.errors import DatasetError
from ext_common.tar_archive import TarArchive

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def read_wnids(path: str | Path) -> list[str]:
    """ImageNet ids, one a line.

    Raises:
        DatasetError: no such file, no ids, or one that stands twice.
    """
    path = Path(path)
    try:
        wnids = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"the list of synsets cannot be read: {error}", where=str(path)
        ) from error
    if not wnids:
        raise DatasetError("no synsets in the list", where=str(path))
    refuse([w for w, n in Counter(wnids).items() if n > 1], "ids given twice", where=str(path))
    return wnids


def list_images(
    root: str | Path,
    wnids: Sequence[str],
    synsets: Mapping[str, Synset],
    categories: Sequence[Mapping[str, Any]],
    *,
    bad_files: str = "error",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Image labels from one folder per synset.

    Args:
        root: folder of the synset folders; others than those of ``wnids`` are passed over.
        wnids: the synsets that are wanted; those without a folder are named in the log.
        synsets: by wnid.
        categories: LVIS categories.
        bad_files: "error", or "skip" files that are not readable images.
        progress: called with (images done, images in all).

    Returns:
        LVIS-style content: ``images`` with ``id`` from 1, ``file_name`` "wnid/file", ``height``,
        ``width``, ``pos_category_ids``; no annotations; the categories with ``image_count``.

    Raises:
        DatasetError: synsets that are unknown or no LVIS class, no images, or bad files.
    """
    known = by_synset(categories, where="LVIS categories")
    names = {wnid: synset_of(synsets, wnid, where="the synset table").name for wnid in wnids}
    refuse(
        [f"{wnid} ({name})" for wnid, name in names.items() if name not in known],
        "synsets that are no LVIS class",
        where=str(root),
    )
    options = FolderOptions(folder_map=names, unknown_folders="skip", bad_files=bad_files)
    content = import_class_folders(root, categories, options, progress=progress)
    counts = Counter(key for image in content["images"] for key in image["pos_category_ids"])
    counted = [{**c, "image_count": counts[c["id"]]} for c in content["categories"]]
    return {**content, "categories": counted}


def unpack_synsets(
    tars: str | Path,
    wnids: Sequence[str],
    root: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Unpack ``WNID.tar`` to the folder ``root/WNID``, for those that have no folder yet.

    A folder appears when it is complete, so that an interrupted run goes on where it was.

    Args:
        tars: folder of the archives.
        wnids: the synsets that are wanted.
        root: folder of the synset folders; made if it is missing.
        progress: called with (synsets done, synsets in all).

    Returns:
        Synsets that have neither a folder nor an archive.

    Raises:
        DatasetError: an archive that cannot be read, or that has folders inside.
    """
    missing = []
    for done, wnid in enumerate(wnids, start=1):
        tar, folder = Path(tars) / f"{wnid}.tar", Path(root) / wnid
        if not folder.is_dir():
            if tar.is_file():
                _unpack(tar, folder)
            else:
                missing.append(wnid)
        if progress is not None:
            progress(done, len(wnids))
    return missing


def _unpack(tar: Path, folder: Path) -> None:
    archive = TarArchive(tar)
    nested = [name for name in archive.names if "/" in name]
    refuse(nested, "members in folders", where=str(tar), fix="images lie directly in the archive")
    partial = folder.with_name(f".unpacking-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for member, name in enumerate(archive.names):
        (partial / name).write_bytes(archive.read_unpacked(member))
    partial.rename(folder)
