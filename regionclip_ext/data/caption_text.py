"""The text column of an image-text file: one caption, several, or tags (specification 7)."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ext_common.errors import DatasetError

MOST_CAPTIONS = 5
"""Captions of a JSON list that are used."""


@dataclass(frozen=True)
class Captions:
    """What is said about an image; at least one of both.

    Args:
        texts: whole sentences.
        tags: words, to be shuffled and put into a prompt.
    """

    texts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def sentences(self, templates: Sequence[str]) -> tuple[str, ...]:
        """The captions that one visit of the image may choose from; see :meth:`draw`."""
        if self.tags and (not self.texts or random.random() < 0.5):
            words = list(self.tags)
            random.shuffle(words)
            return (random.choice(templates).replace("{}", " ".join(words)),)
        return self.texts

    def draw(self, templates: Sequence[str]) -> str:
        """One caption, by Python's global generator.

        Where there are both texts and tags, one kind is taken with even chances; tags are shuffled
        and fill a random template; of several texts each is as likely.
        """
        return random.choice(self.sentences(templates))


def parse_captions(text: str, *, where: str) -> Captions:
    """Captions of the text column: plain text, or JSON with ``captions`` or ``tags``.

    Args:
        text: the column; what is no JSON object is one plain caption.
        where: file and key, for messages.

    Raises:
        DatasetError: no caption, or captions that are no texts.
    """
    content = _json_object(text)
    if content is None:
        return checked_captions([text], where=where)
    tags = content.get("tags", "")
    if not isinstance(tags, str):
        raise DatasetError(f"'tags' is {str(tags)[:60]!r}, not one text of words", where=where)
    texts = content.get("captions", [])
    if tags.split() and not texts:
        return Captions(tags=tuple(tags.split()))
    found = checked_captions(texts, where=where)
    return Captions(found.texts, tuple(tags.split()))


def checked_captions(texts: Any, *, where: str) -> Captions:
    """The first captions of a list, blanks trimmed.

    Raises:
        DatasetError: no list of texts, or nothing in it.
    """
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DatasetError(
            f"'captions' is {str(texts)[:60]!r}, not a list of texts",
            where=where,
            fix='write one text, or JSON such as {"captions": ["a dog", "a pet"]}',
        )
    filled = tuple(text.strip() for text in texts if text.strip())
    if not filled:
        raise DatasetError("no caption", where=where, fix="remove the image, or describe it")
    return Captions(filled[:MOST_CAPTIONS])


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
