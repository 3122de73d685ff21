"""Image labels from captions: a class is a label where one of its names is in the text.

The rule (specification 6.6): a name counts where it stands between blanks, or at the beginning or
the end of the text with a blank on its other side; case does not matter, punctuation does. [quirk]
So a text that is nothing but the name gives no label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ext_common.errors import DatasetError

Record = dict[str, Any]


class TagMatcher:
    """Finds the classes of a text.

    Instead of searching the text for every name, the runs of words in the text are looked up among
    all names at once; the result is that of the rule above.

    Args:
        categories: with ``id`` and ``synonyms``.

    Raises:
        DatasetError: a category without synonyms.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]) -> None:
        self._ids = [category["id"] for category in categories]
        self._places: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for place, category in enumerate(categories):
            if not isinstance(category.get("synonyms"), list):
                raise DatasetError(
                    f"category {category['id']} has no list of synonyms",
                    fix="use the LVIS v1 categories",
                )
            for name in category["synonyms"]:
                spoken = spoken_name(name)
                if spoken:
                    self._places[tuple(spoken.split(" "))].add(place)
        self._longest = max(map(len, self._places), default=0)

    def __call__(self, text: str) -> list[int]:
        """Ids of the classes in a text, in order of the categories."""
        words = text.lower().split(" ")
        found: set[int] = set()
        for length in range(1, min(self._longest, len(words) - 1) + 1):
            for start in range(len(words) - length + 1):
                found |= self._places.get(tuple(words[start : start + length]), set())
        return [self._ids[place] for place in sorted(found)]


def spoken_name(name: str) -> str:
    """A class name as a caption has it: blanks, lower case, nothing from a parenthesis on."""
    return name.replace("_", " ").partition("(")[0].lower().strip()


def tag_images(
    images: Iterable[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    *,
    all_captions: bool = False,
    keep_untagged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Record]:
    """The images with ``pos_category_ids`` found in their ``captions``, one by one.

    Args:
        images: each with a list ``captions``.
        categories: with ``id`` and ``synonyms``.
        all_captions: search all captions, joined by blanks; else the first alone.
        keep_untagged: keep images without labels.
        progress: called with the number of images done.

    Raises:
        DatasetError: images without captions, or categories without synonyms.
    """
    matcher = TagMatcher(categories)
    for done, image in enumerate(images, start=1):
        captions = image.get("captions")
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise DatasetError(f"image {image.get('id')!r} has no list of captions")
        found = matcher(" ".join(captions if all_captions else captions[:1]))
        if found or keep_untagged:
            yield {**image, "pos_category_ids": found}
        if progress is not None:
            progress(done)
