"""From captions to a concept pool: counts, plurals, stop list, threshold (specification 1.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from regionclip_ext.concepts.concept_list import Concept
from regionclip_ext.concepts.nouns import Tagger, nouns_of

PUBLISHED_FREQUENCY = 100
"""Concepts that captions use less often are left out."""

# fmt: off
STOP_LIST = frozenset((
    "background", "bunch", "close", "couple", "day", "front", "group", "image", "kind", "lot",
    "many", "middle", "other", "others", "pair", "part", "photo", "photograph", "photos", "pic",
    "picture", "pictures", "piece", "set", "shot", "side", "something", "someone", "thing",
    "things", "time", "top", "type", "variety", "view", "way",
))
# fmt: on
"""Nouns that say nothing about what can be seen in a region; our own choice, replaceable."""


@dataclass
class NounCounts:
    """Nouns seen so far. Counts of parts of a corpus can be added up.

    Args:
        singular, plural: how often each word was seen as such.
        captions: how many captions were parsed.
    """

    singular: Counter[str] = field(default_factory=Counter)
    plural: Counter[str] = field(default_factory=Counter)
    captions: int = 0

    def add(self, caption: str, tagger: Tagger, *, compounds: bool = False) -> None:
        """Parse a caption."""
        self.captions += 1
        for noun in nouns_of(caption, tagger, compounds=compounds):
            (self.plural if noun.plural else self.singular)[noun.name] += 1

    def concepts(
        self,
        *,
        frequency: int = PUBLISHED_FREQUENCY,
        stop: Iterable[str] = STOP_LIST,
        singularize: Callable[[str], str] | None = None,
    ) -> list[Concept]:
        """The pool: frequent nouns, the most frequent first, ties by name.

        A plural counts for its singular where the captions use that too: rules alone would turn
        "glasses" into "glass" and "broccoli" into "broccolus".

        Args:
            frequency: least count.
            stop: words to leave out.
            singularize: of a plural; None = TextBlob's rules.
        """
        rule = singularize or _textblob_singularize()
        total = Counter(self.singular)
        for word, count in self.plural.items():
            single = _singular(word, rule)
            total[single if self.singular.get(single) else word] += count
        left_out = set(stop)
        kept = [
            Concept(name, count)
            for name, count in total.items()
            if count >= frequency and name not in left_out
        ]
        return sorted(kept, key=lambda concept: (-(concept.count or 0), concept.name))


def count_nouns(
    captions: Iterable[str],
    tagger: Tagger,
    *,
    compounds: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NounCounts:
    """Parse captions.

    Args:
        captions: each is parsed by itself.
        tagger: see :func:`~regionclip_ext.concepts.nouns.build_tagger`.
        compounds: count rows of nouns beside their heads.
        progress: told the number of captions done.
    """
    counts = NounCounts()
    for number, caption in enumerate(captions, start=1):
        counts.add(caption, tagger, compounds=compounds)
        if progress is not None:
            progress(number)
    return counts


def _singular(word: str, rule: Callable[[str], str]) -> str:
    """Of a row of nouns, the last one is in the plural."""
    *first, last = word.split(" ")
    return " ".join([*first, rule(last)])


def _textblob_singularize() -> Callable[[str], str]:
    from textblob.en.inflect import singularize

    def rule(word: str) -> str:
        return str(singularize(word))

    return rule
