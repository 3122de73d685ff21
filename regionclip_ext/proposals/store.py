"""Proposals of many images in a folder of box files (made by ``prepare_data.py proposals``).

A part file holds the proposals of some images and is written whole or not at all, so that an
interrupted run goes on with the next part. Boxes are float32 XYXY pixels of the image as it was
read, by falling score; scores are objectness logits. An image is found by its key with the name of
its source before it, because archives often share the names of their members.

Legend: N images of all parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.box_file import BoxFile, ImageBoxes, name_digest, write_boxes
from ext_common.errors import DatasetError
from ext_common.images import printable

SUFFIX = ".regions"
MADE_BY = "proposals"

_KEYS = "source:image"  # what the names in a part are; older files had the image's alone
OF_ONE_PART = "images"
"""The setting that differs from part to part: digest of the keys of its images."""


class ProposalStore:
    """Reads proposals by image key. Objects can be pickled, and shared by forked workers.

    Args:
        folder: with part files.

    Raises:
        DatasetError: no such folder, no part file, one that is damaged, two that were made by
            different detectors, or files of an older version, whose keys do not name the source.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._parts = [open_part(path) for path in part_files(self.folder)]
        if not self._parts:
            raise DatasetError(
                "no precomputed proposals",
                where=printable(self.folder) or "MODEL.CLIP.PROPOSAL_FILE",
                fix="make them: tools/prepare_data.py proposals",
            )
        self.header = _shared(self._parts[0].settings)
        if self.header.get("keys") != _KEYS:
            raise DatasetError(
                "made by an older version, which did not tell images of one name in two files apart",
                where=printable(self.folder),
                fix="delete the folder and make the proposals again",
            )
        for part in self._parts:
            if _shared(part.settings) != self.header:
                raise DatasetError(
                    "made with other settings than the first part file",
                    where=printable(part.path),
                    fix="delete the folder and make the proposals again",
                )

    def __reduce__(self) -> tuple[object, ...]:
        return (ProposalStore, (self.folder,))  # mapped again where it arrives

    def __len__(self) -> int:
        """Images."""
        return sum(map(len, self._parts))

    def __contains__(self, key: str) -> bool:
        return self._get(key) is not None

    def find(self, key: str, size: tuple[int, int] | None = None) -> ImageBoxes:
        """The proposals of an image.

        Args:
            key: of the image with its source, as
                :meth:`~regionclip_ext.data.pairs.PairRecords.read` gives it.
            size: (height, width) of the image as it was read, to be compared.

        Raises:
            DatasetError: an image without proposals, or of another size than when they were made.
        """
        found = self._get(key)
        if found is None:
            raise DatasetError(
                f"no proposals for image {printable(key)!r}",
                where=printable(self.folder),
                fix="make them for these images: tools/prepare_data.py proposals; before the colon "
                "is the name of the file or folder that the image is in",
            )
        if size is not None and size != found.size_hw:
            raise DatasetError(
                f"the image is {size[1]} x {size[0]} pixels, its proposals are for "
                f"{found.size_hw[1]} x {found.size_hw[0]} (width x height)",
                where=printable(key),
                fix="make the proposals again",
            )
        return found

    @cached_property
    def _digests(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Digests [N] of all images in rising order, and the number [N] of the part of each."""
        digests_N = np.concatenate([part.digests_N for part in self._parts])
        parts_N = np.repeat(
            np.arange(len(self._parts), dtype=np.int32), [len(part) for part in self._parts]
        )
        order_N = np.argsort(digests_N, kind="stable")
        return digests_N[order_N], parts_N[order_N]

    def _get(self, key: str) -> ImageBoxes | None:
        digests_N, parts_N = self._digests
        wanted = name_digest(key)
        first = int(np.searchsorted(digests_N, wanted, side="left"))
        end = int(np.searchsorted(digests_N, wanted, side="right"))
        for number in parts_N[first:end].tolist():
            place = self._parts[number].find(key)
            if place is not None:
                return self._parts[number].image(place)
        return None


def write_part(
    folder: Path,
    number: int,
    header: Mapping[str, Any],
    images: Iterable[ImageBoxes],
    wanted: str = "",
) -> Path:
    """Write one part file, whole or not at all.

    Args:
        folder: made if missing.
        number: of the part.
        header: what made the proposals; the same for all parts.
        images: proposals with their scores; the name of an image is its key.
        wanted: digest of the keys of the images that the part is for.
    """
    path = part_path(folder, number)
    folder.mkdir(parents=True, exist_ok=True)
    write_boxes(path, images, MADE_BY, part_settings(header, wanted))
    return path


def part_settings(header: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """What a part file says about how it was made, see :func:`write_part`."""
    return {**header, "keys": _KEYS, OF_ONE_PART: wanted}


def is_for_other_images(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a part differs from a wanted one in its images alone."""
    return _shared(settings) == _shared(wanted) and settings != wanted


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What all parts of a folder have in common."""
    return {key: value for key, value in settings.items() if key != OF_ONE_PART}


def open_part(path: Path) -> BoxFile:
    """One part file.

    Raises:
        DatasetError: a file that cannot be read or is damaged.
    """
    return BoxFile(path, MADE_BY)  # a digest of all content would read it at every start


def part_path(folder: Path, number: int) -> Path:
    """Where a part belongs."""
    return folder / f"part-{number:05d}{SUFFIX}"


def part_files(folder: Path) -> Sequence[Path]:
    """The part files of a folder in order."""
    return sorted(folder.glob(f"part-*{SUFFIX}")) if folder.is_dir() else []
