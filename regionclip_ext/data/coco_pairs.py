"""Image-text pairs from COCO's captions file and its folder of images."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ext_common.data.annotation_checks import refuse
from ext_common.data.image_paths import leaves_root
from ext_common.data.json_files import read_json
from ext_common.errors import DatasetError
from ext_common.images import printable
from regionclip_ext.data.caption_text import checked_captions
from regionclip_ext.data.pairs import Pair

logger = logging.getLogger(__name__)


class CocoCaptionPairs:
    """The images of a captions file that have captions.

    Args:
        annotations: JSON with ``images`` (``id``, ``file_name``) and ``annotations`` (``image_id``,
            ``caption``).
        image_root: folder of the images; None = COCO's tree (``annotations/captions_X.json``
            beside folder ``X``).

    Raises:
        DatasetError: a missing file or folder, missing fields, names of files outside the folder,
            captions of images that the file does not have, or no image with a caption. All files
            are looked for at the start.
    """

    def __init__(self, annotations: str | Path, image_root: str | Path | None = None) -> None:
        self.path = Path(annotations)
        self.image_root = Path(image_root) if image_root is not None else _coco_folder(self.path)
        self._pairs = _read_pairs(self.path)
        if not self.image_root.is_dir():
            raise DatasetError("no such folder of images", where=printable(self.image_root))
        missing = _missing(self.image_root, [name for name, _ in self._pairs])
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(self._pairs)} images of {printable(self.path)} are not "
                f"there, the first is {printable(missing[0])}",
                where=printable(self.image_root),
                fix="the captions are of other images, or the folder is not complete",
            )

    @property
    def name(self) -> str:
        """The captions file."""
        return str(self.path)

    @property
    def pictures(self) -> Path:
        """The folder of the images."""
        return self.image_root

    def __len__(self) -> int:
        return len(self._pairs)

    def keys(self) -> Iterator[str]:
        """Names of the image files."""
        for name, _ in self._pairs:
            yield name

    def pair(self, place: int) -> Pair:
        """One pair; the image is read by the caller."""
        name, texts = self._pairs[place]
        path = self.image_root / name
        where = printable(path)
        return Pair(name, path, checked_captions(list(texts), where=where), where)

    def captions(self) -> Iterator[str]:
        """All captions."""
        for _, texts in self._pairs:
            yield from texts


def _read_pairs(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(file name, captions) of every image with a caption, in file order."""
    content = read_json(path)
    names: dict[Any, str] = {}
    for image in _objects(content, "images", path):
        name = image.get("file_name")
        if not isinstance(name, str) or "id" not in image:
            raise DatasetError(
                f"an image without id or file_name: {str(image)[:80]}", where=str(path)
            )
        names[image["id"]] = name
    refuse(
        [printable(name) for name in names.values() if leaves_root(name)],
        "file names lead out of the folder of images",
        where=printable(path),
        fix="name files relative to that folder, without '..'",
    )
    captions: dict[Any, list[str]] = defaultdict(list)
    wrong, foreign = [], []
    for entry in _objects(content, "annotations", path):
        text, image_id = entry.get("caption"), entry.get("image_id")
        if not isinstance(text, str):
            wrong.append(entry.get("id"))
        elif image_id not in names:
            foreign.append(entry.get("id"))
        elif text.strip():
            captions[image_id].append(text.strip())
    refuse(wrong, "annotations without a caption", where=printable(path))
    refuse(foreign, "captions of images that the file does not have", where=printable(path))
    pairs = [(name, tuple(captions[key])) for key, name in names.items() if key in captions]
    if not pairs:
        raise DatasetError("no image has a caption", where=printable(path))
    if len(pairs) < len(names):
        logger.info("%s: left out %d images without captions", path, len(names) - len(pairs))
    return pairs


def _missing(root: Path, names: Sequence[str]) -> list[str]:
    """Names without a file. Folders are listed once each: a look-up per file takes minutes."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in listed:
            path = root / folder
            listed[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if base not in listed[folder]:
            missing.append(name)
    return missing


def _objects(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DatasetError(
            f"{key!r} is no list of objects",
            where=printable(path),
            fix="give a captions file such as COCO's captions_train2017.json",
        )
    return found


def _coco_folder(annotations: Path) -> Path:
    stem = annotations.stem
    if not stem.startswith("captions_"):
        raise DatasetError(
            "the name does not say where the images are",
            where=printable(annotations),
            fix="write FILE+FOLDER",
        )
    return annotations.parent.parent / stem.removeprefix("captions_")
