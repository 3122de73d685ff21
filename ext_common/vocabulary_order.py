"""Whether two lists name the same classes in the same order, however each spells them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ext_common.data.class_names import first_mismatch, folded
from ext_common.vocabulary_prompts import fill, lvis_name

_NUMBERED = re.compile(r"(class)?\d+")


def spelling_key(name: str) -> str:
    """What the spellings of a class name have in common: no case, signs, underscores or blanks.

    ``aerosol_can`` of LVIS' annotations is the ``aerosol can`` of ``concept-features``,
    ``bow_(weapon)`` is ``bow weapon``, and ``trafficlight`` is ``traffic light``.
    """
    return folded(fill("{}", lvis_name(name))).replace(" ", "")


def known_names(names: Sequence[str]) -> tuple[str, ...] | None:
    """The names; None where ``Vocabulary`` made them up for rows without (``class_0``, ...)."""
    if all(name == f"class_{row}" for row, name in enumerate(names)):
        return None
    return tuple(names)


def first_misplaced(
    names: Sequence[str], others: Sequence[str], *, renamed: bool = False
) -> int | None:
    """The first place where two lists of equal length stand for different classes.

    A class may be called differently ("hair drier", "hair dryer"); a name that the other list has
    at another place is a mismatch, and so are lists that mostly differ. A single class has no
    order, and numbers say nothing about names: they are compared with the same numbers only.

    Args:
        names: class names.
        others: as many class names.
        renamed: one list may give all classes other names (real ones for codes, say): only names
            at another place count.

    Returns:
        The index; None where the lists agree, or cannot be compared.
    """
    own = [spelling_key(name) for name in names]
    reference = [spelling_key(name) for name in others]
    known = set(reference)
    if len(own) == 1 or ((_numbered(own) or _numbered(reference)) and set(own) != known):
        return None
    row = first_mismatch(own, reference)
    return None if renamed and row is not None and own[row] not in known else row


def _numbered(keys: Sequence[str]) -> bool:
    return all(_NUMBERED.fullmatch(key) for key in keys)
