"""Are the image files of a dataset there, readable, and of the recorded size?

Existence is told by listing each folder once. Headers (sizes) and pixels (decoding) are read by
several processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ext_common.data import problem_kinds as kinds
from ext_common.data.progress import Progress
from ext_common.errors import DatasetError, ImageError
from ext_common.images import DEFAULT_MAX_PIXELS, Source, image_size, printable, read_image
from ext_common.tar_shards import TarDataset

_CHUNKS = (64, 1024)  # fewest and most images that a process gets at a time
_SHARES = 32  # chunks of each process, where there are many images
_AHEAD = 4  # chunks in waiting for each process


class ImageToCheck(NamedTuple):
    """One image.

    Args:
        place: where it stands in ``images``.
        image_id: its id, for messages.
        key: file name relative to the image root, or the number of a file in tar archives.
        height, width: as recorded; 0 = not recorded.
    """

    place: int
    image_id: Any
    key: str | int
    height: int
    width: int


class Problem(NamedTuple):
    """What is wrong with the image at ``place``."""

    place: int
    kind: kinds.Kind
    text: str


class ImageSource(Protocol):
    """Where images are; can be pickled."""

    def missing(self, images: Sequence[ImageToCheck]) -> list[Problem]:
        """Images that are not there, without opening any."""

    def source(self, key: Any) -> tuple[Source, str]:
        """A path or the content, and what messages call it."""


@dataclass(frozen=True)
class FolderImages:
    """Images in a folder.

    Args:
        root: what names are relative to.
    """

    root: str

    def missing(self, images: Sequence[ImageToCheck]) -> list[Problem]:
        """By listing every folder that is named, once."""
        listed: dict[str, set[str]] = {}
        problems = []
        for image in images:
            folder, _, base = str(image.key).rpartition("/")
            if folder not in listed:
                listed[folder] = _files_in(Path(self.root) / folder)
            if base not in listed[folder]:
                text = f"{image.image_id} ({printable(str(image.key))})"
                problems.append(Problem(image.place, kinds.FILE_MISSING, text))
        return problems

    def source(self, key: Any) -> tuple[Source, str]:
        """The path, named relative to the root."""
        return os.path.join(self.root, key), printable(key)


@dataclass(frozen=True)
class TarImages:
    """Images in tar archives, by their number.

    Args:
        dataset: the archives.
    """

    dataset: TarDataset

    def missing(self, images: Sequence[ImageToCheck]) -> list[Problem]:
        """Numbers beyond the last file."""
        count = len(self.dataset)
        return [
            Problem(
                image.place, kinds.FILE_MISSING, f"{image.image_id} (file {image.key} of {count})"
            )
            for image in images
            if not (isinstance(image.key, int) and 0 <= image.key < count)
        ]

    def source(self, key: Any) -> tuple[Source, str]:
        """The content, named by archive and file."""
        tar, _ = self.dataset.locate(key)
        return self.dataset.read(
            key
        ), f"{self.dataset.tars[tar].name}: {printable(self.dataset.name(key))}"


def check_files(
    images: Sequence[ImageToCheck],
    source: ImageSource,
    *,
    sizes: bool = True,
    decode: bool = False,
    processes: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> Iterator[Problem]:
    """Problems of image files, in no particular order.

    Args:
        images: what to look at.
        source: where they are.
        sizes: read every header and compare the size.
        decode: read every pixel as well.
        processes: how many work; 1 = this one alone.
        max_pixels: images of more are unreadable.
        progress: told (images done, images in all).

    Raises:
        DatasetError: a process was killed.
    """
    absent = source.missing(images)
    yield from absent
    if not sizes and not decode:
        return
    places = {problem.place for problem in absent}
    work = [image for image in images if image.place not in places]
    check = partial(_check_chunk, source, decode, max_pixels)
    size = min(max(len(work) // (processes * _SHARES), _CHUNKS[0]), _CHUNKS[1])
    chunks = (work[start : start + size] for start in range(0, len(work), size))
    done = 0
    for chunk, problems in _in_processes(check, chunks, processes):
        yield from problems
        done += len(chunk)
        if progress is not None:
            progress(done, len(work))


def _files_in(folder: Path) -> set[str]:
    """Names of the files of a folder; links count where what they name is there."""
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name
                for entry in entries
                if (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file())
            }
    except (OSError, ValueError):
        return set()


def _check_chunk(
    source: ImageSource, decode: bool, max_pixels: int, images: list[ImageToCheck]
) -> list[Problem]:
    found = (_check_one(source, image, decode, max_pixels) for image in images)
    return [problem for problem in found if problem is not None]


def _check_one(
    source: ImageSource, image: ImageToCheck, decode: bool, max_pixels: int
) -> Problem | None:
    try:
        content, name = source.source(image.key)
        if decode:
            size = read_image(content, max_pixels=max_pixels, name=name).shape[:2]
        else:
            size = image_size(content, name=name)
    except (ImageError, DatasetError) as error:
        return Problem(image.place, kinds.FILE_UNREADABLE, f"{image.image_id} ({error})")
    height, width = size
    if not decode and height * width > max_pixels:
        text = f"{image.image_id} ({name}: {width} x {height} pixels, over the limit)"
        return Problem(image.place, kinds.FILE_UNREADABLE, text)
    if image.height and (height, width) != (image.height, image.width):
        text = (
            f"{image.image_id} ({name}: {width} x {height}, "
            f"recorded {image.width} x {image.height})"
        )
        return Problem(image.place, kinds.FILE_SIZE, text)
    return None


def _quiet() -> None:
    """Animated images are no problem of a dataset; a hundred lines would tear the progress bar."""
    logging.getLogger("ext_common.images").setLevel(logging.ERROR)


def _in_processes(
    check: Any, chunks: Iterable[list[ImageToCheck]], processes: int
) -> Iterator[tuple[list[ImageToCheck], list[Problem]]]:
    if processes <= 1:
        for chunk in chunks:
            yield chunk, check(chunk)
        return
    # forked processes need not import everything again; there are no other threads here
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_quiet) as pool:
        remaining = iter(chunks)
        waiting: deque[tuple[list[ImageToCheck], Future[list[Problem]]]] = deque()
        try:
            while True:
                for chunk in islice(remaining, processes * _AHEAD - len(waiting)):
                    waiting.append((chunk, pool.submit(check, chunk)))
                if not waiting:
                    return
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        except BrokenProcessPool as error:
            raise DatasetError(
                f"a process was killed near the image {printable(str(chunk[0].key))}",
                fix="the machine may be out of memory: use fewer processes (--jobs)",
            ) from error
