"""Nouns of captions, by TextBlob's part-of-speech tagger.

TextBlob is maintained, small, and brings the lexicon of its tagger with the package; the taggers of
NLTK and spaCy fetch theirs from elsewhere. The original parsed captions with a scene-graph parser
whose code for this was not published, so that no choice gives its lists (specification 1.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ext_common.errors import ConfigError

Tagged = Sequence[tuple[str, str]]
Tagger = Callable[[str], Tagged]

_WORD = re.compile(r"[a-z][a-z'-]*[a-z]")  # two letters at least; no digits
_NOUNS = ("NN", "NNS")  # names of persons and places (NNP) are no concepts
_BEFORE_NOUNS = ("DT", "PRP$", "JJ", "CD", "POS")


@dataclass(frozen=True)
class Noun:
    """A noun of a caption.

    Args:
        name: lower case, as written.
        plural: whether the tagger takes it for a plural.
    """

    name: str
    plural: bool


def build_tagger() -> Tagger:
    """TextBlob's tagger: text to pairs of word and Penn Treebank tag.

    Raises:
        ConfigError: TextBlob is not installed.
    """
    try:
        from textblob.en import tag
    except ImportError as error:
        raise ConfigError(
            "parsing captions needs the package textblob", fix="pip install textblob==0.20.1"
        ) from error

    def tagger(text: str) -> Tagged:
        found: Any = tag(text, tokenize=True)
        return [(str(word), str(mark)) for word, mark in found]

    return tagger


def nouns_of(caption: str, tagger: Tagger, *, compounds: bool = False) -> Iterator[Noun]:
    """The nouns of a caption, with repeats.

    Of several nouns in a row the last is the head: "fire hydrant" is a hydrant.

    Args:
        caption: any case: it is lowered first, or capitals would pass for names.
        tagger: see :func:`build_tagger`.
        compounds: give the whole row ("fire hydrant") beside its head.
    """
    for run in _runs(_repaired(tagger(caption.lower()))):
        head, mark = run[-1]
        yield Noun(head, mark == "NNS")
        if compounds and len(run) > 1:
            yield Noun(" ".join(word for word, _ in run), mark == "NNS")


def _runs(tagged: Tagged) -> Iterator[list[tuple[str, str]]]:
    """Nouns that follow one another."""
    run: list[tuple[str, str]] = []
    for word, mark in (*tagged, (".", ".")):
        if mark in _NOUNS and _WORD.fullmatch(word):
            run.append((word, mark))
        elif run:
            yield run
            run = []


def _repaired(tagged: Tagged) -> Tagged:
    """Verbs behind an article or an adjective are nouns: "a sink", "the front stop"."""
    repaired: list[tuple[str, str]] = []
    for word, mark in tagged:
        before = repaired[-1][1] if repaired else ""
        if mark in ("VB", "VBP") and before in _BEFORE_NOUNS:
            mark = "NN"
        repaired.append((word, mark))
    return repaired
