"""SoCo's proposals on disk: one box file, also put together from the parts of several machines.

Names are relative paths with ``/``; boxes are x1, y1, x2, y2 with the last pixel inside
(x2 = x + width - 1); settings say how the proposals were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ext_common.data.box_file import BoxFile, ImageBoxes, write_boxes
from ext_common.errors import DatasetError
from ext_common.images import printable

MADE_BY = "soco-proposals"


def open_proposals(path: str | Path, *, check: bool = False) -> BoxFile:
    """Proposals of the images of a training set.

    Args:
        path: what :func:`write_proposals` wrote.
        check: compare the digest of the content, which reads all of the file once.

    Raises:
        DatasetError: no such file, another kind of file, or a damaged one.
    """
    return BoxFile(path, MADE_BY, check=check)


def write_proposals(
    path: str | Path, images: Iterable[ImageBoxes], settings: Mapping[str, Any]
) -> int:
    """Write a file, whole or not at all; see :func:`ext_common.data.box_file.write_boxes`.

    Returns:
        Number of images.

    Raises:
        DatasetError: two images of one name, no image, or boxes that are no numbers.
        OSError: the folder cannot be written, or the disk is full.
    """
    found = list(images)
    if not found:
        raise DatasetError("no images", where=printable(path), fix="check the folder of images")
    return write_boxes(path, found, MADE_BY, settings)


def merge_files(paths: Sequence[str | Path], output: str | Path) -> int:
    """Put the files of several machines together; returns the number of images.

    Files were made alike where their settings are; of input files, the digests have to be equal,
    not the names.

    Raises:
        DatasetError: a file cannot be read, has other settings than the first, or has an image of
            another one; parts of different numbers of parts, or with whole files among them; or a
            part is missing.
    """
    files = [open_proposals(path, check=True) for path in paths]
    shared = [_without_shard(file.settings) for file in files]
    for file, settings in zip(files, shared, strict=True):
        if _without_names(settings) != _without_names(shared[0]):
            raise DatasetError(
                f"made with {settings}, but {printable(files[0].path)} with {shared[0]}",
                where=printable(file.path),
                fix="merge files that were made with the same options",
            )
    _require_all_shards(files)
    images = (image for file in files for image in file.items())
    return write_proposals(output, images, shared[0])


def _without_shard(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "shard"}


def _without_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the names of files that are there with their digests."""
    return {key: value for key, value in settings.items() if f"{key}_digest" not in settings}


def _require_all_shards(files: Sequence[BoxFile]) -> None:
    shards = [str(file.settings.get("shard", "")) for file in files]
    if not any(shards):
        return  # whole files, of other images each
    made = ", ".join(
        f"{printable(file.path)} is {f'part {shard}' if shard else 'no part but whole'}"
        for file, shard in zip(files, shards, strict=True)
    )
    parts = {int(shard.split("/")[1]) for shard in shards if shard}
    if len(parts) != 1 or not all(shards):
        raise DatasetError(
            f"the files are not the parts of one set: {made}",
            where="--merge",
            fix="merge parts 1/N to N/N of one N, or whole files",
        )
    total = parts.pop()
    missing = [f"{n}/{total}" for n in range(1, total + 1) if f"{n}/{total}" not in shards]
    if missing:
        raise DatasetError(
            f"parts {', '.join(missing)} are missing: {made}",
            where="--merge",
            fix="make them, and name all files",
        )
