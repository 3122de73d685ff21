"""Concept lists on disk: one ``name,count`` per line (specification 1.1).

Legend: C concepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ext_common.atomic_file import write_bytes
from ext_common.errors import VocabularyError
from ext_common.images import printable
from ext_common.vocabulary_checks import comparison_key


@dataclass(frozen=True)
class Concept:
    """A noun and how often captions use it; None where a list does not say."""

    name: str
    count: int | None = None


def read_concepts(path: str | Path) -> list[Concept]:
    """The concepts of a list of ours or of the authors': what is before the first comma is the name.

    Raises:
        VocabularyError: no such file, not UTF-8, no concepts, an empty line between others, or a
            concept twice (case and blanks aside); the line is named.
    """
    path = Path(path)
    where = printable(path)
    try:
        # -sig: a byte order mark is no part of the first name
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except FileNotFoundError as error:
        raise VocabularyError("no such file", where=where, fix="check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"cannot be read: {error}", where=where, fix="UTF-8 text") from error
    found: list[Concept] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name, _, rest = (part.strip() for part in line.partition(","))
        if not name:
            raise VocabularyError(
                f"line {number} has no concept" if line.strip() else f"line {number} is empty",
                where=where,
                fix="remove the line: row numbers of embeddings follow the lines",
            )
        first = first_lines.setdefault(comparison_key(name), number)
        if first != number:
            raise VocabularyError(
                f"line {number} repeats {name!r} of line {first}",
                where=where,
                fix="remove one of them",
            )
        found.append(Concept(name, int(rest) if rest.isdigit() else None))
    return found


def write_concepts(path: str | Path, concepts: Iterable[Concept]) -> None:
    """Write ``name,count`` lines, or names alone where counts are not known."""
    lines = [c.name if c.count is None else f"{c.name},{c.count}" for c in concepts]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def names_of(concepts: Sequence[Concept]) -> list[str]:
    """The names in order."""
    return [concept.name for concept in concepts]
