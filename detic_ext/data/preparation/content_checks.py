"""What annotation files must have before a preparation works on them, and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ext_common.data.annotation_checks import first_ten, records_of, refuse
from ext_common.data.lvis_json import LoadOptions, dataset_dicts
from ext_common.errors import DatasetError

Content = Mapping[str, Any]
Record = dict[str, Any]


def objects_of(
    content: Content, field: str, *, where: str, keys: Sequence[str] = ()
) -> list[Record]:
    """The list of objects under ``field``, each with these keys.

    Args:
        content: of an annotation file.
        field: "images", "annotations" or "categories".
        where: the file, for messages.
        keys: what every object must have.

    Raises:
        DatasetError: no such list, or entries that are no objects or lack a key.
    """
    records = records_of(content, field, where=where)
    wanted = ("id", *keys) if field != "annotations" else keys
    wrong = [
        place
        for place, record in enumerate(records)
        if not isinstance(record, dict) or not all(key in record for key in wanted)
    ]
    names = f" with {', '.join(wanted)}" if wanted else ""
    refuse(wrong, f"entries of {field!r} that are not objects{names}, at", where=where)
    return records


def check_content(content: Content, *, where: str) -> None:
    """Check a file by what the training loader asks of it.

    Args:
        content: ``images``, ``annotations``, ``categories``.
        where: the file that the content was made from.

    Raises:
        DatasetError: missing fields, unknown or repeated ids, or wrong labels or captions, with the
            first ten of a kind. Boxes that are empty or outside are counted in the log: the
            published files have a few, and the loader leaves them out.
    """
    dataset_dicts(content, "", where, LoadOptions(bad_boxes="drop", allow_links=True))


def require_field(categories: Sequence[Content], name: str, *, where: str) -> None:
    """Check that every category has a text or list ``name``.

    Raises:
        DatasetError: names the categories without it.
    """
    without = [c.get("id") for c in categories if not isinstance(c.get(name), str | list)]
    refuse(without, f"categories without {name!r}", where=where, fix="use the LVIS v1 categories")


def by_synset(categories: Sequence[Content], *, where: str) -> dict[str, int]:
    """Category id by synset name.

    Raises:
        DatasetError: categories without a synset, or two with one.
    """
    require_field(categories, "synset", where=where)
    times = Counter(str(category["synset"]) for category in categories)
    repeated = [name for name, count in times.items() if count > 1]
    if repeated:
        raise DatasetError(f"synsets given twice: {first_ten(repeated)}", where=where)
    return {str(category["synset"]): int(category["id"]) for category in categories}
