"""One vocabulary of LVIS and ImageNet-21k: 22,047 classes (specification 6.5, 6.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detic_ext.data.preparation.content_checks import require_field
from ext_common.data.annotation_checks import contiguous_ids
from ext_common.errors import DatasetError

Category = dict[str, Any]


@dataclass(frozen=True)
class MergedVocabulary:
    """The classes of two sources under one numbering.

    Args:
        categories: those of the first source as they are, then the new ones of the second.
        new_id: id here, by id in the second source.
    """

    categories: tuple[Category, ...]
    new_id: Mapping[int, int]

    def relabelled(
        self, images: Iterable[Mapping[str, Any]], *, where: str
    ) -> Iterator[dict[str, Any]]:
        """Images of the second source with ``pos_category_ids`` of this vocabulary, one by one.

        Raises:
            DatasetError: a label that the second source does not have.
        """
        for image in images:
            old = image.get("pos_category_ids", [])
            unknown = [key for key in old if key not in self.new_id]
            if unknown:
                raise DatasetError(
                    f"image {image.get('id')!r} has label {unknown[0]!r}, which is not in 'categories'",
                    where=where,
                )
            # two classes of the source may be one here: each label once
            new = list(dict.fromkeys(self.new_id[key] for key in old))
            yield {**image, "pos_category_ids": new}


def merge_vocabularies(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    *,
    where: str,
    second_where: str,
) -> MergedVocabulary:
    """Add the classes of ``second`` that ``first`` does not have.

    A class is known where its synset is, else where its name is (letter by letter). New classes get
    the ids behind the largest of ``first``, in the order of ``second``.

    Args:
        first: categories with ``id``, ``name``, ``synset`` (LVIS).
        second: categories with the same (ImageNet-21k).
        where: file of ``first``, for messages.
        second_where: file of ``second``.

    Raises:
        DatasetError: categories without these fields, or ids given twice.
    """
    for categories, place in ((first, where), (second, second_where)):
        contiguous_ids(categories, where=place)
        require_field(categories, "synset", where=place)
    by_synset = {category["synset"]: category["id"] for category in first}
    by_name = {category["name"]: category["id"] for category in first}
    merged = [dict(category) for category in first]
    next_id = max(category["id"] for category in first) + 1
    new_id: dict[int, int] = {}
    for category in second:
        known = by_synset.get(category["synset"], by_name.get(category["name"]))
        if known is None:
            known, next_id = next_id, next_id + 1
            merged.append({**category, "id": known})
        new_id[category["id"]] = known
    return MergedVocabulary(tuple(merged), new_id)
