"""Images in many tar archives under one numbering, without unpacking (Detic specification 6.4).

Every file can be read at any time by any process, so the number of archives has nothing to do with
the number of loader workers or ranks.

Legend: N files of all archives together.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.annotation_checks import first_ten
from ext_common.errors import DatasetError, ImageError
from ext_common.images import DEFAULT_MAX_PIXELS, BadSamplePolicy, printable, read_image
from ext_common.tar_archive import MemberTable, TarArchive
from ext_common.tar_index import ArchiveState, TarIndex
from ext_common.tar_index_file import open_index_file, read_index
from ext_common.tar_published_index import PublishedIndex, published_files, published_length


@dataclass(frozen=True)
class TarSample:
    """One image of a :class:`TarDataset`.

    Args:
        image_HWC: uint8 [H, W, 3] in the dataset's channel order, upright.
        label: number of its archive.
        name: name inside the archive.
    """

    image_HWC: NDArray[np.uint8]
    label: int
    name: str


class TarDataset:
    """The files of several archives, numbered through.

    Archives are opened, and their indices loaded, when a file of theirs is first asked for; the
    least recently used are closed again. Objects can be pickled and shared by forked workers.

    Args:
        tars: the archives; the order gives the numbering and the labels.
        counts: how many files each had when the annotations were made (``tar_list``). With it an
            archive that was cut off since keeps its numbers, and its missing files are bad images;
            without it all numbers behind them would move.
        index_dir: folder of the indices, ours or the authors' layout (which wins); None = beside
            the archives.
        image_format: channel order of images, "RGB" or "BGR".
        max_pixels: larger images are refused before decoding.
        policy: decides about bad images in :meth:`__getitem__`; the default raises.
        open_archives: most archives that are open at a time.
        progress: called with (archives done, archives in all) while indices are opened or made.

    Raises:
        DatasetError: no archives, two of one name with one ``index_dir``, or archives that cannot
            be indexed (``tar_scan.scan_tar``), or that have other files than when they were counted.
    """

    def __init__(
        self,
        tars: Sequence[str | Path],
        *,
        counts: Sequence[int] | None = None,
        index_dir: str | Path | None = None,
        image_format: str = "RGB",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        policy: BadSamplePolicy | None = None,
        open_archives: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.tars = tuple(Path(tar) for tar in tars)
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.policy = policy or BadSamplePolicy("raise")
        _check_names(self.tars, index_dir)
        shards: list[_Shard] = []
        expected: Sequence[int | None] = [None] * len(self.tars) if counts is None else counts
        for tar, wanted in zip(self.tars, expected, strict=True):
            shards.append(_shard(tar, None if index_dir is None else Path(index_dir), wanted))
            if progress is not None:
                progress(len(shards), len(self.tars))
        self._ends = np.cumsum([shard.count for shard in shards], dtype=np.int64)
        self._archives = _OpenArchives(shards, open_archives)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [N]: number of the archive of every file."""
        counts = np.diff(self._ends, prepend=0)
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the archive, number of the file in it).

        Raises:
            IndexError: not 0 <= ``index`` < N.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} files in {len(self.tars)} archives")
        label = int(np.searchsorted(self._ends, index, side="right"))
        return label, index - (int(self._ends[label - 1]) if label else 0)

    def name(self, index: int) -> str:
        """Name of a file inside its archive."""
        archive, member = self._open(index)
        return archive.names[member]

    def read(self, index: int) -> bytes:
        """Content of a file, unpacked where it is gzip.

        Raises:
            IndexError: see :meth:`locate`.
            DatasetError, ImageError: see :meth:`TarArchive.read_unpacked`; or the file is missing.
        """
        archive, member = self._open(index)
        return archive.read_unpacked(member)

    def image(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of a file, in ``image_format``, upright.

        Raises:
            IndexError, DatasetError: as :meth:`read`.
            ImageError: not a readable image; never a made-up one.
        """
        archive, member = self._open(index)
        return read_image(
            archive.read_unpacked(member),
            format=self.image_format,
            max_pixels=self.max_pixels,
            name=archive.where(member),
        )

    def __getitem__(self, index: int) -> TarSample | None:
        """The sample ``index``; None where it is bad and the policy skips it."""
        label = self.locate(index)[0]
        image_HWC = self.policy.attempt(self.tars[label], partial(self.image, index))
        return None if image_HWC is None else TarSample(image_HWC, label, self.name(index))

    def _open(self, index: int) -> tuple[TarArchive, int]:
        label, member = self.locate(index)
        archive = self._archives.get(label)
        if member >= len(archive):
            raise ImageError(
                f"the archive is cut off before file {member}, of which it has {len(archive)}",
                where=printable(archive.path),
                fix="copy or download it again",
            )
        return archive, member


class TarRecordReader:
    """Reads the image of a dataset dict with ``tar_index`` (a mapper's ``read_record``).

    Args:
        dataset: with the channel order and pixel limit of the mapper.
    """

    def __init__(self, dataset: TarDataset) -> None:
        self.dataset = dataset

    def __call__(self, record: Mapping[str, Any]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3].

        Raises:
            DatasetError: no ``tar_index``, or one that the archives do not have.
            ImageError: not a readable image.
        """
        index = record.get("tar_index")
        if not isinstance(index, int) or not 0 <= index < len(self.dataset):
            raise DatasetError(
                f"image {record.get('image_id')!r} has tar_index {index!r}; "
                f"the archives have {len(self.dataset)} files",
                fix="make the annotations again from these archives, in this order",
            )
        return self.dataset.image(index)


@dataclass(frozen=True)
class _Shard:
    """One archive that is not open."""

    tar: Path
    count: int  # numbers that it takes; it has fewer files where it was cut off
    published: tuple[Path, Path] | None = None
    index_file: Path | None = None
    state: ArchiveState | None = None  # what the index was made for
    index: TarIndex | None = None  # only where it could not be written

    def open(self) -> TarArchive:
        return TarArchive(self.tar, self._table())

    def _table(self) -> MemberTable:
        if self.published is not None:
            return PublishedIndex(*self.published)
        if self.index is not None:
            return self.index
        index = read_index(self.index_file) if self.index_file is not None else None
        if index is None or index.state != self.state:
            raise DatasetError(
                "the index changed while it was in use",
                where=printable(self.index_file or self.tar),
                fix="start again",
            )
        return index


class _OpenArchives:
    """The most recently used archives; a copy in another process starts with none."""

    def __init__(self, shards: Sequence[_Shard], most: int) -> None:
        self.shards = tuple(shards)
        self.most = max(most, 1)
        self._open: OrderedDict[int, TarArchive] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, label: int) -> TarArchive:
        with self._lock:
            if label not in self._open:
                self._open[label] = self.shards[label].open()
                if len(self._open) > self.most:
                    # closed when the last thread that reads from it lets go
                    self._open.popitem(last=False)
            self._open.move_to_end(label)
            return self._open[label]

    def __reduce__(self) -> tuple[object, ...]:
        return (_OpenArchives, (self.shards, self.most))


def _check_names(tars: Sequence[Path], index_dir: str | Path | None) -> None:
    if not tars:
        raise DatasetError("no tar archives", fix="name at least one")
    if index_dir is None:
        return
    repeated = [name for name, count in Counter(tar.name for tar in tars).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{len(repeated)} archives have the name of another: {first_ten(repeated)}",
            where=printable(index_dir),
            fix="their indices would be mixed up: rename them, or keep the indices beside them",
        )


def _shard(tar: Path, index_dir: Path | None, wanted: int | None) -> _Shard:
    published = published_files(tar, index_dir or tar.parent)
    if published is not None:
        count = published_length(published[1])
        return _Shard(tar, _numbers(tar, count, wanted, cut=False), published=published)
    index, file = open_index_file(tar, index_dir)
    return _Shard(
        tar,
        _numbers(tar, len(index), wanted, cut=index.cut_at is not None),
        index_file=file,
        state=index.state,
        index=index if file is None else None,
    )


def _numbers(tar: Path, count: int, wanted: int | None, *, cut: bool) -> int:
    if wanted is None or wanted == count or (cut and count < wanted):
        return count if wanted is None else wanted
    raise DatasetError(
        f"has {count} files and had {wanted} when the annotations were made",
        where=printable(tar),
        fix="restore the archive, or make the annotations and the list of archives again",
    )
