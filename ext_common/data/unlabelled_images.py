"""Images without annotations: a folder with all its subfolders, or tar archives.

Legend: N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ext_common.data.lazy_sequence import LazySequence
from ext_common.errors import DatasetError
from ext_common.images import IMAGE_SUFFIXES, printable
from ext_common.packed_names import PackedNames
from ext_common.tar_list import read_tar_counts, read_tar_list
from ext_common.tar_shards import TarDataset

Record = dict[str, Any]


class ImageList(LazySequence[Record]):
    """Dataset dicts of images that have nothing but a name.

    Args:
        names: of the images; relative paths with ``/``.
        root: folder of the images; None = they lie in tar archives.
        tar_places_N: for archives, the number of each image in their ``TarDataset``.
    """

    def __init__(
        self,
        names: Sequence[str],
        root: str | None = None,
        tar_places_N: np.ndarray | None = None,
    ) -> None:
        self.names = PackedNames.of(names)
        self.root = root
        self.tar_places_N = tar_places_N

    def __len__(self) -> int:
        return len(self.names)

    def element(self, place: int) -> Record:
        """``image_id``, ``image_name`` (relative path), and ``file_name`` or ``tar_index``."""
        name = self.names[place]
        record: Record = {"image_id": place, "image_name": name}
        if self.root is not None:
            record["file_name"] = os.path.join(self.root, name)
        elif self.tar_places_N is not None:
            record["tar_index"] = int(self.tar_places_N[place])
        return record


def images_of_folder(root: str | Path) -> ImageList:
    """All images below a folder, found by the endings of their names, sorted.

    Raises:
        DatasetError: no such folder, or no image in it.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetError("no such folder", where=printable(root), fix="check the path")
    names = sorted(_names_below(str(root), "", set()))
    if not names:
        raise DatasetError(
            "no images in the folder or its subfolders",
            where=printable(root),
            fix=f"known endings: {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    return ImageList(names, str(root))


def images_of_tars(path: str | Path) -> tuple[ImageList, TarDataset]:
    """All images of archives, called ``<archive>/<name in it>``.

    Args:
        path: folder of archives, or a list of them (``tar_list.read_tar_list``).

    Raises:
        DatasetError: archives that cannot be used, two of one name, or no image in them.
    """
    tars = read_tar_list(path)
    if len({tar.name for tar in tars}) != len(tars):
        raise DatasetError(
            "two archives have one name", where=printable(path), fix="rename one of them"
        )
    dataset = TarDataset(tars, counts=read_tar_counts(path), image_format="RGB")
    labels = dataset.labels.tolist()
    names, places = [], []
    for place, label in enumerate(labels):
        member = dataset.name(place)
        if Path(member).suffix.lower() in IMAGE_SUFFIXES:
            names.append(f"{tars[label].name}/{member}")
            places.append(place)
    if not names:
        raise DatasetError("no images in the archives", where=printable(path))
    return ImageList(names, tar_places_N=np.array(places, dtype=np.int64)), dataset


def _names_below(folder: str, prefix: str, seen: set[str]) -> Iterator[str]:
    """Relative paths; links to folders are followed, each folder once."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _names_below(entry.path, f"{prefix}{entry.name}/", seen)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file():
                yield prefix + entry.name
