"""Proposals of many images in a folder of mapped files (made by ``prepare_data.py proposals``).

A part file holds the proposals of some images and is written whole or not at all, so that an
interrupted run goes on with the next part. Images are found by a 64-bit digest of their key.

Legend: M images of a part, R proposals of an image, P proposals of a part; ``boxes_P4`` float32 XYXY
pixels of the image as it was read; ``sizes_M2`` int32 (height, width).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data.array_file import ArrayFileError, map_arrays, read_header, write_arrays
from ext_common.errors import DatasetError
from ext_common.images import printable

SUFFIX = ".regions"


@dataclass(frozen=True)
class StoredRegions:
    """The proposals of one image.

    Args:
        boxes_R4: float32, XYXY pixels of the image as it was read, by falling logit.
        logits_R: float32, objectness.
        size: (height, width) of that image.
    """

    boxes_R4: NDArray[np.float32]
    logits_R: NDArray[np.float32]
    size: tuple[int, int]


class ProposalStore:
    """Reads proposals by image key. Objects can be pickled, and shared by forked workers.

    Args:
        folder: with part files.

    Raises:
        DatasetError: no such folder, no part file, one that is damaged, or two that were made by
            different detectors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = part_files(self.folder)
        if not self._files:
            raise DatasetError(
                "no precomputed proposals",
                where=printable(self.folder) or "MODEL.CLIP.PROPOSAL_FILE",
                fix="make them: tools/prepare_data.py proposals",
            )
        headers = [part_header(path) for path in self._files]
        self.header = headers[0]
        for path, header in zip(self._files, headers, strict=True):
            if header != self.header:
                raise DatasetError(
                    "made with other settings than the first part file",
                    where=printable(path),
                    fix="delete the folder and make the proposals again",
                )

    def __reduce__(self) -> tuple[object, ...]:
        return (ProposalStore, (self.folder,))  # mapped again where it arrives

    def __len__(self) -> int:
        """Images."""
        return sum(len(part["ends_M"]) for part in self._parts)

    def __contains__(self, key: str) -> bool:
        return self._locate(key) is not None

    def find(self, key: str, size: tuple[int, int] | None = None) -> StoredRegions:
        """The proposals of an image.

        Args:
            key: of the image in its source.
            size: (height, width) of the image as it was read, to be compared.

        Raises:
            DatasetError: an image without proposals, or of another size than when they were made.
        """
        place = self._locate(key)
        if place is None:
            raise DatasetError(
                f"no proposals for image {printable(key)!r}",
                where=printable(self.folder),
                fix="make them for these images: tools/prepare_data.py proposals",
            )
        part, row = self._parts[place[0]], place[1]
        start = int(part["ends_M"][row - 1]) if row else 0
        end = int(part["ends_M"][row])
        stored = (int(part["sizes_M2"][row, 0]), int(part["sizes_M2"][row, 1]))
        if size is not None and size != stored:
            raise DatasetError(
                f"the image is {size[1]} x {size[0]} pixels, its proposals are for "
                f"{stored[1]} x {stored[0]} (width x height)",
                where=printable(key),
                fix="make the proposals again",
            )
        return StoredRegions(part["boxes_P4"][start:end], part["logits_P"][start:end], stored)

    @cached_property
    def _parts(self) -> list[dict[str, NDArray[Any]]]:
        return [_mapped(path) for path in self._files]

    @cached_property
    def _digests(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Digests of all images in rising order, and (part, row) packed in one number."""
        digests = np.concatenate([part["digests_M"] for part in self._parts])
        places = np.concatenate(
            [
                (number << 32) + np.arange(len(part["digests_M"]), dtype=np.int64)
                for number, part in enumerate(self._parts)
            ]
        )
        order = np.argsort(digests, kind="stable")
        return digests[order], places[order]

    def _locate(self, key: str) -> tuple[int, int] | None:
        digests, places = self._digests
        wanted = key_digest(key)
        at = int(np.searchsorted(digests, wanted))
        if at == len(digests) or digests[at] != wanted:
            return None
        return int(places[at]) >> 32, int(places[at]) & 0xFFFFFFFF


def write_part(
    folder: Path, number: int, header: Mapping[str, Any], regions: Mapping[str, StoredRegions]
) -> Path:
    """Write one part file, whole or not at all.

    Args:
        folder: made if missing.
        number: of the part.
        header: what made the proposals; the same for all parts.
        regions: by image key.
    """
    path = part_path(folder, number)
    folder.mkdir(parents=True, exist_ok=True)
    found = list(regions.values())
    write_arrays(
        path,
        header,
        {
            "digests_M": np.array([key_digest(key) for key in regions], dtype=np.uint64),
            "ends_M": np.cumsum([len(one.logits_R) for one in found], dtype=np.int64),
            "sizes_M2": np.array([one.size for one in found], dtype=np.int32).reshape(-1, 2),
            "boxes_P4": np.concatenate(
                [np.zeros((0, 4), np.float32), *(r.boxes_R4 for r in found)]
            ),
            "logits_P": np.concatenate([np.zeros(0, np.float32), *(r.logits_R for r in found)]),
        },
    )
    return path


def part_path(folder: Path, number: int) -> Path:
    """Where a part belongs."""
    return folder / f"part-{number:05d}{SUFFIX}"


def part_files(folder: Path) -> Sequence[Path]:
    """The part files of a folder in order."""
    return sorted(folder.glob(f"part-*{SUFFIX}")) if folder.is_dir() else []


def part_header(path: Path) -> dict[str, Any]:
    """What made the proposals of a part.

    Raises:
        DatasetError: a file that cannot be read or is damaged.
    """
    try:
        return read_header(path)
    except (OSError, ArrayFileError) as error:
        raise _damaged(path, error) from error


def key_digest(key: str) -> np.uint64:
    """64 bits of a key's BLAKE2b digest; two of ten million keys collide with a chance of 3e-6."""
    content = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(content, "little"))


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return map_arrays(path, check=False)  # the digest would read all of it at every start
    except (OSError, ArrayFileError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"cannot be read: {error}", where=printable(path), fix="delete it and make it again"
    )
