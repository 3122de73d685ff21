"""Finding the proposals of many images: on all cores, and again from where a killed run was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ext_common.data.box_file import ImageBoxes
from ext_common.data.unlabelled_images import ImageList
from ext_common.errors import ConfigError, DatasetError, ExtError, ImageError
from ext_common.images import image_size, printable, read_image
from ext_common.tar_shards import TarDataset
from soco_ext.proposals.filtering import BoxFilter
from soco_ext.proposals.finders import ChecksNames, Finder, filtered_boxes
from soco_ext.proposals.inputs import place_of_images
from soco_ext.proposals.journal import Journal
from soco_ext.proposals.proposal_file import write_proposals


@dataclass(frozen=True)
class Shard:
    """The part of the images that one machine does: every ``parts``-th, from number ``number``.

    Raises:
        ConfigError: not 1 <= number <= parts.
    """

    number: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise ConfigError(
                f"shard {self.number}/{self.parts}", where="--shard", fix="such as 1/4 to 4/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``i/n``."""
        number, _, parts = text.partition("/")
        if not (number.isdecimal() and parts.isdecimal()):
            raise ConfigError(f"{text!r} is no part", where="--shard", fix="such as 1/4 to 4/4")
        return cls(int(number), int(parts))

    def places(self, count: int) -> range:
        """Which of ``count`` images."""
        return range(self.number - 1, count, self.parts)


@dataclass(frozen=True)
class Request:
    """What to do.

    Args:
        images: the images.
        finder: finds their boxes.
        strategy: which of those are kept.
        tars: for images in archives.
        shard: the part of the images.
        workers: processes; 0 = this one. Each uses one thread, and all share the finder's memory
            where processes are forked.
        find_here: workers only read the images, and this process finds the boxes: for a finder
            that uses a GPU.
        skip_bad: leave out images that cannot be read, instead of stopping.
        settings: what the file says about how it was made, besides finder, filter and shard.
    """

    images: ImageList
    finder: Finder
    strategy: BoxFilter
    tars: TarDataset | None = None
    shard: Shard = Shard()
    workers: int = 0
    find_here: bool = False
    skip_bad: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def all_settings(self) -> dict[str, Any]:
        """What the file says about how it was made."""
        made = {"source": self.finder.name, "strategy": self.strategy.text, **self.settings}
        if self.shard.parts > 1:
            made["shard"] = f"{self.shard.number}/{self.shard.parts}"
        return made


@dataclass
class Outcome:
    """What a run did.

    Args:
        images: in the file.
        boxes: in the file.
        empty: images without boxes.
        resumed: images that an earlier run had done.
        bad: what was wrong with the images that were left out.
    """

    images: int = 0
    boxes: int = 0
    empty: int = 0
    resumed: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Read:
    """An image whose boxes are to be found; no pixels where the finder does not need them."""

    name: str
    size_hw: tuple[int, int]
    image_HW3: NDArray[np.uint8] | None


class _Search(Dataset[ImageBoxes | _Read | ExtError]):
    """Proposals of one image by its place; an error is returned, not raised, to keep its type."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __getitem__(self, place: int) -> ImageBoxes | _Read | ExtError:
        try:
            image = self._read(place)
        except ExtError as error:
            return error
        return image if self.request.find_here else _searched(image, self.request)

    def _read(self, place: int) -> _Read:
        request = self.request
        record = request.images[place]
        name = record["image_name"]
        source = record["file_name"] if request.tars is None else None
        if source is not None and not request.finder.needs_pixels:
            return _Read(name, image_size(source), None)
        if request.tars is not None:
            image_HW3 = request.tars.image(record["tar_index"])
        else:
            image_HW3 = read_image(record["file_name"], format="RGB")
        return _Read(name, (image_HW3.shape[0], image_HW3.shape[1]), image_HW3)


def _searched(image: _Read, request: Request) -> ImageBoxes | ExtError:
    try:
        rects_K4 = request.finder(image.name, image.size_hw, image.image_HW3)
    except ExtError as error:
        return error
    boxes_K4 = filtered_boxes(rects_K4, image.size_hw, request.strategy)
    return ImageBoxes(image.name, image.size_hw, boxes_K4)


def journal_of(output: Path) -> Path:
    """Where the images that are done are noted until the file is complete."""
    return output.with_name(f"{output.name}.journal")


def find_proposals(
    request: Request,
    output: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Find the proposals of all images and write one file.

    A run that was killed goes on with the images that are not in its journal.

    Args:
        request: what to do.
        output: the file.
        progress: called with (images done, images in all).

    Raises:
        DatasetError: a journal of a run with other options or images, images that the finder
            cannot tell apart, or no image could be read.
        ImageError: an unreadable image, unless those are skipped.
    """
    settings = request.all_settings()
    outcome = Outcome()
    if isinstance(request.finder, ChecksNames):
        request.finder.check_names(request.images.names)
    # names are relative, so that those of another folder could pass for these; the finished file
    # does not have the place, which differs between the machines that share the work
    resumable = {**settings, "images": place_of_images(request.images, request.tars)}
    with Journal(journal_of(output), resumable) as journal:
        places = request.shard.places(len(request.images))
        names = {request.images.names[place] for place in places}
        todo = [place for place in places if request.images.names[place] not in journal.done]
        outcome.resumed = len(places) - len(todo)
        done = outcome.resumed
        for found in _results(request, todo):
            if isinstance(found, ExtError):
                _handle_bad(found, request, outcome)
            else:
                journal.add(found)
            done += 1
            if progress is not None:
                progress(done, len(places))
        kept = [image for image in journal.images() if image.name in names]
        if not kept:
            raise DatasetError("none of the images can be read", where=printable(output))
        outcome.images = write_proposals(output, kept, settings)
    journal.path.unlink()
    outcome.boxes = sum(len(image.boxes_K4) for image in kept)
    outcome.empty = sum(not len(image.boxes_K4) for image in kept)
    return outcome


def _results(request: Request, todo: list[int]) -> Iterator[ImageBoxes | ExtError]:
    """In the order of ``todo``; workers search, or read, ahead."""
    workers = min(request.workers, len(todo))
    loader = DataLoader(
        _Search(request),
        batch_size=None,
        sampler=todo,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=8 if workers else None,
        generator=torch.Generator(),
    )
    for found in loader:
        yield _searched(found, request) if isinstance(found, _Read) else found


def _as_it_is(found: Any) -> Any:
    return found


def _handle_bad(error: ExtError, request: Request, outcome: Outcome) -> None:
    if not request.skip_bad or not isinstance(error, ImageError | DatasetError):
        raise error
    outcome.bad.append(str(error))
