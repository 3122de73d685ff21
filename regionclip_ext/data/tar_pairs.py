"""Image-text pairs in a tar archive: ``name.jpg`` beside ``name.txt`` or ``name.json``.

Legend: N pairs; ``members_N2`` int64, numbers of the image and of the text in the archive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ext_common.errors import DatasetError
from ext_common.images import IMAGE_SUFFIXES, printable
from ext_common.tar_archive import TarArchive
from regionclip_ext.data.caption_text import Captions, checked_captions, parse_captions
from regionclip_ext.data.pairs import Pair

_TEXT_SUFFIXES = (".txt", ".json")


class TarPairs:
    """The pairs of one archive, which is indexed first where it has no index.

    Args:
        path: archive. A ``.txt`` member is one caption, or JSON as in TSV files; a ``.json`` member
            has ``caption`` (text) or ``captions`` (list).

    Raises:
        DatasetError: no archive, no pairs in it, or images without a text (captions that do not
            match the images).
    """

    def __init__(self, path: str | Path) -> None:
        self.archive = TarArchive(path)
        images: dict[str, int] = {}
        texts: dict[str, int] = {}
        for member, name in enumerate(self.archive.names):
            suffix = PurePosixPath(name).suffix.lower()
            stem = name[: len(name) - len(suffix)]
            if suffix in IMAGE_SUFFIXES:
                images[stem] = member
            elif suffix in _TEXT_SUFFIXES:
                texts.setdefault(stem, member)
        lonely = [stem for stem in images if stem not in texts]
        if lonely or not images:
            raise DatasetError(
                f"{len(lonely)} of {len(images)} images have no caption"
                + (f", the first is {printable(lonely[0])}" if lonely else ""),
                where=printable(path),
                fix="put NAME.txt or NAME.json beside each NAME.jpg",
            )
        self._members_N2 = np.array([(images[s], texts[s]) for s in images], dtype=np.int64)

    @property
    def name(self) -> str:
        """The archive."""
        return str(self.archive.path)

    @property
    def pictures(self) -> Path:
        """The archive."""
        return self.archive.path

    def __len__(self) -> int:
        return len(self._members_N2)

    def keys(self) -> Iterator[str]:
        """Names of the images in the archive."""
        for image in self._members_N2[:, 0].tolist():
            yield self.archive.names[image]

    def pair(self, place: int) -> Pair:
        """Read one pair."""
        image, text = (int(member) for member in self._members_N2[place])
        where = self.archive.where(image)
        content = self.archive.read_unpacked(image)
        return Pair(self.archive.names[image], content, self._captions(text), where)

    def captions(self) -> Iterator[str]:
        """All captions."""
        for _, text in self._members_N2:
            yield from self._captions(int(text)).texts

    def _captions(self, member: int) -> Captions:
        where = self.archive.where(member)
        try:
            text = self.archive.read(member).decode("utf-8")
            if not where.endswith(".json"):
                return parse_captions(text.strip(), where=where)
            content = json.loads(text)
        except ValueError as error:
            raise DatasetError(f"cannot be read: {error}", where=where) from error
        if not isinstance(content, dict):
            raise DatasetError("no JSON object", where=where)
        return checked_captions(content.get("captions") or [content.get("caption")], where=where)


def find_tar_pairs(path: str | Path) -> list[TarPairs]:
    """The archives ``*.tar`` of a folder by name, or one archive.

    Raises:
        DatasetError: there are none, or see :class:`TarPairs`.
    """
    path = Path(path)
    found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not found:
        raise DatasetError("no tar archives", where=printable(path))
    return [TarPairs(file) for file in found]
