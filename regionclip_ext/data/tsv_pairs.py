"""Image-text pairs in two tab-separated files with the same keys row by row (specification 7).

An image row is ``key, base64 of an image file``; the text row of the same number is ``key, text``.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ext_common.errors import DatasetError, ImageError
from ext_common.images import printable
from regionclip_ext.data.caption_text import parse_captions
from regionclip_ext.data.pairs import Pair
from regionclip_ext.data.tsv_file import TsvFile

logger = logging.getLogger(__name__)

MOST_FILES = 20
"""Image files of a folder that are used, as in the original."""

_IMAGE_WORDS = ("images", "image", "img")
_TEXT_WORDS = (("images", "text"), ("image", "text"), ("img", "caption"))
_CHECKED_ROWS = 32  # whose keys are compared at the start; all others when they are read


class TsvPairs:
    """The pairs of an image file and a text file.

    Args:
        images: image file.
        texts: text file; None = named like the image file, see :func:`text_file_of`.

    Raises:
        DatasetError: a missing file, an index that is out of step, another number of rows, or keys
            that differ.
    """

    def __init__(self, images: str | Path, texts: str | Path | None = None) -> None:
        self.images = TsvFile(images)
        self.texts = TsvFile(texts if texts is not None else text_file_of(Path(images)))
        if len(self.images) != len(self.texts):
            raise DatasetError(
                f"{len(self.texts)} rows for {len(self.images)} images",
                where=printable(self.texts.path),
                fix="the rows of both files must belong together one by one",
            )
        self._rows = _line_list(self.images)
        for place in np.unique(np.linspace(0, len(self) - 1, _CHECKED_ROWS).astype(np.int64)):
            self._keyed(int(place))

    @property
    def name(self) -> str:
        """The image file."""
        return str(self.images.path)

    @property
    def pictures(self) -> Path:
        """The image file."""
        return self.images.path

    def __len__(self) -> int:
        return len(self.images) if self._rows is None else len(self._rows)

    def keys(self) -> Iterator[str]:
        """The keys of all rows, from the text file; that the images' are equal :meth:`pair` sees."""
        if self._rows is None:
            yield from self.texts.column(0)
        else:
            for row in self._rows.tolist():
                yield self.texts.row(row)[0]

    def pair(self, place: int) -> Pair:
        """Read one pair.

        Raises:
            DatasetError: keys differ, or there is no caption.
            ImageError: the image column is no base64.
        """
        row, image, text = self._keyed(place)
        where = f"{self.images.where(row)}, {printable(image[0])}"
        try:
            content = base64.b64decode(image[1], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"no base64: {error}", where=where) from error
        return Pair(image[0], content, parse_captions(text[1], where=where), where)

    def captions(self) -> Iterator[str]:
        """All captions, in one pass through the text file; images are not read."""
        for place, text in enumerate(self.texts.column(1)):
            yield from parse_captions(text, where=self.texts.where(place)).texts

    def _keyed(self, place: int) -> tuple[int, list[str], list[str]]:
        """Number of the row in the files, its image columns and its text columns."""
        row = place if self._rows is None else int(self._rows[place])
        image, text = self.images.row(row), self.texts.row(row)
        for columns, file in ((image, self.images), (text, self.texts)):
            if len(columns) != 2:
                raise DatasetError(
                    f"{len(columns)} columns, expected a key and a value", where=file.where(row)
                )
        if image[0] != text[0]:
            raise DatasetError(
                f"the caption is of {printable(text[0])!r}, the image of {printable(image[0])!r}",
                where=self.texts.where(row),
                fix="the rows of both files must belong together one by one",
            )
        return row, image, text


def find_tsv_pairs(path: str | Path) -> list[TsvPairs]:
    """The pairs of a folder, or of one image file.

    In a folder these are the first 20 files, by name, that end in ``.tsv`` and have ``images``,
    ``image`` or ``img`` in their names.

    Raises:
        DatasetError: there are none, or see :class:`TsvPairs`.
    """
    path = Path(path)
    if not path.is_dir():
        return [TsvPairs(path)]
    found = sorted(p for p in path.glob("*.tsv") if any(word in p.name for word in _IMAGE_WORDS))
    if not found:
        raise DatasetError(
            "no image files",
            where=printable(path),
            fix=f"name them *.tsv with one of {', '.join(_IMAGE_WORDS)} in the name",
        )
    if len(found) > MOST_FILES:
        logger.warning("%s: %d image files, the first %d are used", path, len(found), MOST_FILES)
    return [TsvPairs(file) for file in found[:MOST_FILES]]


def text_file_of(images: Path) -> Path:
    """The text file of an image file: ``images`` or ``image`` replaced by ``text``, ``img`` by
    ``caption``.

    Raises:
        DatasetError: the name has none of these words.
    """
    for word, replacement in _TEXT_WORDS:
        if word in images.name:
            return images.with_name(images.name.replace(word, replacement))
    raise DatasetError(
        "the name does not say which file has the captions",
        where=printable(images),
        fix=f"put one of {', '.join(_IMAGE_WORDS)} into the name",
    )


def _line_list(images: TsvFile) -> NDArray[np.int64] | None:
    """The rows that ``<stem>.linelist`` chooses; None without that file."""
    path = images.path.with_suffix(".linelist")
    if not path.is_file():
        return None
    try:
        rows = np.array(path.read_bytes().split(), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DatasetError(
            f"not one row number per line: {error}", where=printable(path)
        ) from error
    if not len(rows) or rows.min() < 0 or rows.max() >= len(images):
        raise DatasetError(
            f"the row numbers are not all from 0 to {len(images) - 1}", where=printable(path)
        )
    return rows
