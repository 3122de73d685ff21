"""WordNet synsets by ImageNet's ids: from a table, or from WordNet's own files.

Nothing is downloaded: docs/prepare_data.md says where WordNet 3.0 is and how to make a table.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ext_common.errors import DatasetError

COLUMNS = ("wnid", "synset", "lemmas", "def")
_WNID = re.compile(r"n\d{8}")
_QUOTED = re.compile(r'"[^"]*"?')
_FIX = "docs/prepare_data.md shows the columns"


@dataclass(frozen=True)
class Synset:
    """One meaning of a noun.

    Args:
        wnid: ImageNet's id, "n" and eight digits (the offset in WordNet 3.0).
        name: "dog.n.01".
        lemmas: its words, with underscores for blanks; at least one.
        definition: what WordNet says it is.
    """

    wnid: str
    name: str
    lemmas: tuple[str, ...]
    definition: str

    def category(self, category_id: int) -> dict[str, Any]:
        """The class in an annotation file (specification 6.6)."""
        return {
            "id": category_id,
            "synset": self.name,
            "name": self.lemmas[0],
            "def": self.definition,
            "synonyms": list(self.lemmas),
        }


def read_synsets(path: str | Path) -> dict[str, Synset]:
    """Synsets by wnid.

    Args:
        path: a text file with tabs whose first line is ``wnid synset lemmas def`` (any order;
            lemmas with commas between); a JSON list of objects with these fields (lemmas as a list
            or a text); or the folder with WordNet's ``index.noun`` and ``data.noun``.

    Raises:
        DatasetError: no such file, a missing column, or a row that is no synset.
    """
    path = Path(path)
    if path.is_dir():
        return _keyed(_wordnet(path), path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, ValueError) as error:
        raise DatasetError(f"the synsets cannot be read: {error}", where=str(path)) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError("not a list of synsets", where=str(path), fix=_FIX)
    return _keyed((_from_row(row, place, path) for place, row in enumerate(rows, 1)), path)


def synset_of(synsets: Mapping[str, Synset], wnid: str, *, where: str) -> Synset:
    """The synset of a wnid.

    Raises:
        DatasetError: the table does not have it.
    """
    if wnid not in synsets:
        raise DatasetError(
            f"no synset {wnid!r} among {len(synsets)}",
            where=where,
            fix="use a table of WordNet 3.0, which ImageNet's ids come from",
        )
    return synsets[wnid]


def _keyed(synsets: Iterator[Synset], path: Path) -> dict[str, Synset]:
    found: dict[str, Synset] = {}
    for synset in synsets:
        if synset.wnid in found:
            raise DatasetError(f"{synset.wnid} stands twice", where=str(path))
        found[synset.wnid] = synset
    if not found:
        raise DatasetError("no synsets", where=str(path), fix=_FIX)
    return found


def _from_row(row: Mapping[str, Any], place: int, path: Path) -> Synset:
    missing = [name for name in COLUMNS if not isinstance(row.get(name), str | list)]
    if missing:
        raise DatasetError(f"row {place} has no {', '.join(missing)}", where=str(path), fix=_FIX)
    lemmas = row["lemmas"]
    if isinstance(lemmas, str):
        lemmas = lemmas.split(",")
    lemmas = tuple(str(lemma).strip().replace(" ", "_") for lemma in lemmas)
    wnid = str(row["wnid"]).strip()
    if not _WNID.fullmatch(wnid) or not all(lemmas) or not lemmas:
        raise DatasetError(
            f"row {place}, {wnid!r} with lemmas {list(lemmas)}, is no synset",
            where=str(path),
            fix=_FIX,
        )
    return Synset(wnid, str(row["synset"]).strip(), lemmas, str(row["def"]).strip())


def _wordnet(folder: Path) -> Iterator[Synset]:
    """All nouns of WordNet; both files begin with lines of licence that start with a blank."""
    senses: dict[str, list[str]] = {}
    for number, line in _lines(folder / "index.noun"):
        fields = line.split()
        try:
            senses[fields[0]] = fields[-int(fields[2]) :]
        except (ValueError, IndexError):
            raise _not_wordnet(folder / "index.noun", number) from None
    for number, line in _lines(folder / "data.noun"):
        record, _, gloss = line.partition(" | ")
        fields = record.split()
        try:
            offset, count = fields[0], int(fields[3], 16)
            lemmas = tuple(fields[4 : 4 + 2 * count : 2])
            sense = senses[lemmas[0].lower()].index(offset) + 1
        except (ValueError, IndexError, KeyError):
            raise _not_wordnet(folder / "data.noun", number) from None
        name = f"{lemmas[0].lower()}.n.{sense:02d}"
        yield Synset(f"n{offset}", name, lemmas, _QUOTED.sub("", gloss).strip().strip("; "))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.startswith(" "):
                    yield number, line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"WordNet cannot be read: {error}",
            where=str(path),
            fix="give the folder 'dict' of WordNet 3.0",
        ) from error


def _not_wordnet(path: Path, number: int) -> DatasetError:
    return DatasetError(
        f"line {number} is not in WordNet's format",
        where=str(path),
        fix="give the folder 'dict' of WordNet 3.0",
    )
