"""The keys of the images that proposals are made for: whose they are, and whether each has one.

Legend: N images.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ext_common.data.box_file import name_digest
from ext_common.errors import DatasetError, ImageError
from ext_common.images import printable
from regionclip_ext.data.pairs import Pair, PairRecords


class ImageKeys:
    """The keys of all images; no image is read for them.

    Args:
        records: the images.
    """

    def __init__(self, records: PairRecords) -> None:
        self.records = records
        self._digests_N = np.fromiter(map(name_digest, records.keys()), "<u8", len(records))
        found, first, counts = np.unique(self._digests_N, return_index=True, return_counts=True)
        repeated = counts > 1
        self._first = dict(zip(found[repeated].tolist(), first[repeated].tolist(), strict=True))

    def digest(self, start: int, end: int) -> str:
        """Digest of the keys of the images from ``start`` to ``end - 1`` in their order."""
        return hashlib.blake2b(self._digests_N[start:end].tobytes(), digest_size=16).hexdigest()

    def check(self, place: int, pair: Pair) -> None:
        """Refuse a second picture of a key; one picture may have several rows of captions.

        Args:
            place: of the pair in the records.
            pair: what was read there.

        Raises:
            DatasetError: the key is that of another picture as well.
        """
        first = self._first.get(int(self._digests_N[place]), place)
        if first == place:
            return
        try:
            other = self.records.read(first)
        except (ImageError, DatasetError):
            return  # it has no proposals: its own turn ended the run, or left it out
        if other.key == pair.key and other.image != pair.image:
            raise DatasetError(
                f"is another picture than {other.where}, and both have the key "
                f"{printable(pair.key)!r}",
                where=pair.where,
                fix="give each picture a key of its own: stored regions are found by it",
            )
