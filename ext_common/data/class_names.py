"""Comparing class names of different files."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ext_common.errors import DatasetError


def folded(name: str) -> str:
    """What two spellings of a class name have in common: no case, blanks for ``_`` and ``-``."""
    return " ".join(re.sub(r"[_-]", " ", name.casefold()).split())


def first_mismatch(own: Sequence[str], reference: Sequence[str]) -> int | None:
    """The first place where folded names stand for another class than those of a reference.

    A class may be called differently; a name that the reference has at another place is a mismatch,
    and so are lists that mostly differ.

    Args:
        own: names.
        reference: at least as many.
    """
    differing = [index for index, text in enumerate(own) if text != reference[index]]
    known = set(reference)
    moved = [index for index in differing if own[index] in known]
    if moved or 2 * len(differing) > len(own):
        return (moved or differing)[0]
    return None


def check_same_order(name: str, names: Sequence[str], other: str, others: Sequence[str]) -> None:
    """Check that the classes of a dataset are the first classes of another.

    A class may be called differently (LVIS has "bull" or "horned_cow"); the same name at another
    place is a mismatch, and so are lists that mostly differ.

    Args:
        name: dataset of ``names``.
        names: its class names by contiguous id.
        other: dataset of ``others``.
        others: at least as many class names.

    Raises:
        DatasetError: names the first class that differs.
    """
    own = [folded(text) for text in names]
    reference = [folded(text) for text in others]
    first = first_mismatch(own, reference)
    if first is None:
        return
    raise DatasetError(
        f"class {first} is {names[first]!r} here and {others[first]!r} in {other!r}",
        where=f"dataset {name!r}",
        fix="give both files the same categories with the same ids",
    )
