"""The authors' JSON files of proposals: ``{stem: [[x, y, width, height], ...]}`` (specification 1.3).

Their key is the file name up to the first dot, so two images of one stem cannot be told apart; writing
those is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as short

import numpy as np
from numpy.typing import NDArray

from ext_common.data.annotation_checks import first_ten
from ext_common.data.box_file import BoxFile
from ext_common.data.json_files import read_json, write_json_atomic
from ext_common.errors import DatasetError
from ext_common.images import printable
from soco_ext.proposals.filtering import boxes_to_rects, is_rect, rects_to_boxes

PublishedRects = Mapping[str, list[list[float]]]
"""x, y, width, height of each key's boxes."""


def published_key(name: str) -> str:
    """The authors' key of an image: its file name up to the first dot."""
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


def empty_list_of(path: str | Path) -> Path:
    """``train_<strategy>no_props_images.txt``, the authors' list beside ``train_<strategy>.json``."""
    path = Path(path)
    return path.with_name(f"{path.stem}no_props_images.txt")


def read_published(path: str | Path) -> PublishedRects:
    """Read the authors' JSON; keys of the list of empty images beside it, if there is one, get [].

    Raises:
        DatasetError: no such file, or a value that is no list of four numbers each.
    """
    content = read_json(path)
    for key, rects in content.items():
        if not _are_rects(rects):
            raise DatasetError(
                f"the value of key {key!r} is no list of [x, y, width, height]: {short(rects)}",
                where=printable(path),
                fix="give the JSON of SoCo's authors, or one of --export-json",
            )
    listed = empty_list_of(path)
    if listed.is_file():
        # the authors' first file leaves these images out, the final one has them as keys
        for line in listed.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            if line.strip():
                content.setdefault(published_key(line.strip()), [])
    return content


def refuse_shared_keys(names: Iterable[str]) -> None:
    """Raise DatasetError where two images have one key."""
    owners: dict[str, str] = {}
    for name in names:
        key = published_key(name)
        if owners.setdefault(key, name) != name:
            raise _same_key(name, owners[key])


def write_published(file: BoxFile, path: str | Path) -> Path:
    """Write proposals as the authors have them, and the list of images without any beside it.

    Returns:
        The list, ``<stem>no_props_images.txt``.

    Raises:
        DatasetError: two images of one key, or coordinates that are no whole pixels.
    """
    owners: dict[str, str] = {}
    content: dict[str, list[list[int]]] = {}
    for image in file.items():
        key = published_key(image.name)
        if owners.setdefault(key, image.name) != image.name:
            raise _same_key(image.name, owners[key])
        rects_K4 = boxes_to_rects(image.boxes_K4)
        if (rects_K4 != np.round(rects_K4)).any():
            raise DatasetError(
                "boxes with fractions of pixels",
                where=printable(image.name),
                fix="the authors' files have whole pixels; use the binary file",
            )
        content[key] = rects_K4.astype(int).tolist()
    path = Path(path)
    write_json_atomic(path, content)
    return _write_empty(path, (key for key, rects in content.items() if not rects))


def _write_empty(path: Path, keys: Iterable[str]) -> Path:
    listed = empty_list_of(path)
    listed.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return listed


def boxes_of_published(rects: object, where: str) -> NDArray[np.float64]:
    """x1, y1, x2, y2 of one image's entry.

    Raises:
        DatasetError: it is no list of rectangles.
    """
    if not _are_rects(rects):
        raise DatasetError("no list of [x, y, width, height]", where=printable(where))
    rects_K4 = np.array(rects, dtype=np.float64).reshape(-1, 4)
    return rects_to_boxes(rects_K4)


def _are_rects(value: object) -> bool:
    return isinstance(value, list) and all(map(is_rect, value))


def _same_key(name: str, other: str) -> DatasetError:
    names = first_ten([printable(other), printable(name)])
    return DatasetError(
        f"two images of one key {published_key(name)!r}: {names}",
        fix="the authors' form cannot tell them apart: rename one, or use the binary file",
    )
