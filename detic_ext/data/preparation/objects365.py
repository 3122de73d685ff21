"""Objects365 v2: corrected class names, and images that were never published (specification 6.6)."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from detic_ext.data.preparation.content_checks import objects_of
from ext_common.data.annotation_checks import refuse
from ext_common.data.image_paths import leaves_root
from ext_common.errors import DatasetError

Progress = Callable[[int, int], None]

FIXED_NAMES: Mapping[int, str] = MappingProxyType(
    {
        38: "Monitor/TV",
        53: "Basket",
        99: "Dining Table",
        123: "Teapot",
        203: "Extension Cord",
        229: "Hot air balloon",
        290: "Hami melon",
        292: "Mushroom",
        300: "Tape Measure/ Ruler",
        308: "Camel",
        314: "Meatball",
        322: "Butterfly",
        355: "Table Tennis paddle",
    }
)
"""The names that the authors' list changes, by category id. The list keeps the misspelt "Ballon"
(91), "Billards" (190) and "Noddles" (351), and the trailing blank of 365: the published text
features were made from these."""


def read_name_table(path: str | Path) -> dict[int, tuple[str, str]]:
    """(old name, new name) by category id, from lines ``id,old,new``; a heading is passed over.

    Raises:
        DatasetError: no such file, or a line that is none of these.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"the names cannot be read: {error}", where=str(path)) from error
    table: dict[int, tuple[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and not row[0].strip().isdigit()):
            continue
        if len(row) != 3 or not row[0].strip().isdigit() or not row[2].strip():
            raise DatasetError(f"line {number} is not 'id,old name,new name'", where=str(path))
        table[int(row[0])] = (row[1], row[2])
    return table


def fix_names(
    content: Mapping[str, Any],
    table: Mapping[int, tuple[str, str]] | None = None,
    *,
    where: str,
) -> tuple[dict[str, Any], list[str]]:
    """Correct class names.

    Args:
        content: of an Objects365 file.
        table: old and new names by id; default :data:`FIXED_NAMES`, whatever the old name.
        where: the file, for messages.

    Returns:
        The content, and a line "id: old -> new" for every name that changed.

    Raises:
        DatasetError: categories that the file does not have, or whose name is neither the old nor
            the new one.
    """
    categories = objects_of(content, "categories", where=where, keys=["name"])
    names = {category["id"]: category["name"] for category in categories}
    new_names = (
        dict(FIXED_NAMES) if table is None else {key: new for key, (_, new) in table.items()}
    )
    refuse(sorted(set(new_names) - set(names)), "category ids that are not there", where=where)
    strange = [
        f"{key} ({names[key]!r}, not {old!r})"
        for key, (old, new) in (table or {}).items()
        if names[key].strip() not in (old.strip(), new.strip())
    ]
    refuse(strange, "categories that have another name", where=where)
    fixed = [{**c, "name": new_names.get(c["id"], c["name"])} for c in categories]
    changed = [
        f"{new['id']}: {old['name']} -> {new['name']}"
        for old, new in zip(categories, fixed, strict=True)
        if old["name"] != new["name"]
    ]
    return {**content, "categories": fixed}, changed


def only_present(
    content: Mapping[str, Any],
    root: str | Path,
    *,
    where: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Leave out images that are not on the disk, with their annotations.

    A file is looked for under its recorded name, and with leading folders of it left out
    ("images/v2/patch16/x.jpg", "v2/patch16/x.jpg", "patch16/x.jpg", "x.jpg"); ``file_name``
    becomes what was found.

    Args:
        content: of an annotation file.
        root: the image folder.
        where: the file, for messages.
        progress: called with (images done, images in all).

    Raises:
        DatasetError: no such folder, none of the images in it, or names that leave it.
    """
    images = objects_of(content, "images", where=where)
    nameless = [
        image.get("id")
        for image in images
        if not isinstance(image.get("file_name"), str) or leaves_root(image["file_name"])
    ]
    refuse(nameless, "images without a name inside the image folder", where=where)
    folders = _Folders(Path(root))
    kept = []
    for done, image in enumerate(images, start=1):
        name = folders.find(image["file_name"])
        if name is not None:
            kept.append({**image, "file_name": name})
        if progress is not None:
            progress(done, len(images))
    if images and not kept:
        raise DatasetError(
            f"none of the {len(images)} images is there",
            where=str(root),
            fix="give the folder that file_name is relative to",
        )
    present = {image["id"] for image in kept}
    annotations = [
        entry
        for entry in objects_of(content, "annotations", where=where, keys=["image_id"])
        if entry["image_id"] in present
    ]
    return {**content, "images": kept, "annotations": annotations}


class _Folders:
    """Files below a root; every folder is listed once instead of asking for every file."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DatasetError("no such folder", where=str(root), fix="check the path")
        self.root = root
        self.listed: dict[str, set[str]] = {}

    def find(self, name: str) -> str | None:
        """The first of ``a/b/c``, ``b/c``, ``c`` that is a file."""
        parts = PurePosixPath(name).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((tail for tail in tails if self._has(tail)), None)

    def _has(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        if folder not in self.listed:
            path = self.root / folder
            self.listed[folder] = (
                {entry.name for entry in path.iterdir() if entry.is_file()}
                if path.is_dir()
                else set()
            )
        return base in self.listed[folder]
