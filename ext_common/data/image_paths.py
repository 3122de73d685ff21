"""File names in annotations stay below the image root: no ``..``, no absolute path, no link out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ext_common.errors import DatasetError
from ext_common.images import printable

_SHOWN = 10
_COCO_NAME_LENGTH = 16  # "000000123456.jpg"


def image_name(image: Mapping[str, Any], *, short_coco_names: bool) -> str | int | None:
    """Where the image of an entry of ``images`` lies.

    Args:
        image: the entry.
        short_coco_names: see ``lvis_json.LoadOptions``.

    Returns:
        Its file name relative to the image root (not checked), of ``file_name`` or else of
        ``coco_url``; the ``tar_index`` of an image in a tar; None where there is none of them.
    """
    name = image.get("file_name")
    if isinstance(name, str) and name:
        short = short_coco_names and name.startswith("COCO")
        return name[-_COCO_NAME_LENGTH:] if short else name
    if name is None and "coco_url" in image:
        # scheme://host/train2017/000000123456.jpg
        return str(image["coco_url"]).partition("://")[2].partition("/")[2] or None
    place = image.get("tar_index")
    return place if name is None and type(place) is int else None


def leaves_root(name: str) -> bool:
    """Whether a relative file name could lead out of the folder that it is relative to."""
    if not name or "\0" in name:
        return True
    if ".." not in name and name[0] not in "/\\" and ":" not in name:
        return False  # nearly all names, without parsing
    return (
        name.startswith("/")
        or bool(PureWindowsPath(name).anchor)
        or ".." in PurePosixPath(name.replace("\\", "/")).parts
    )


def check_links(root: str, names: Iterable[str], *, where: str) -> None:
    """Refuse symbolic links below ``root`` that lead out of it.

    Folders are listed once each, so that a hundred thousand names cost no look-up per file. Files
    that do not exist are no concern of this check.

    Args:
        root: image folder; may itself be a link.
        names: file names relative to it, lexically inside (:func:`leaves_root`).
        where: what an error calls the list of names.

    Raises:
        DatasetError: with the first ten names and the total.
    """
    escaping = escaping_links(root, names)
    if escaping:
        shown = ", ".join(printable(name) for name in escaping[:_SHOWN])
        raise DatasetError(
            f"{len(escaping)} images are links that leave {root}: {shown}",
            where=where,
            fix="copy the images, or set allow_links: true where you trust the links",
        )


def escaping_links(root: str, names: Iterable[str]) -> list[str]:
    """The names that are links out of the root, or lie in a folder that is one."""
    links: dict[str, set[str]] = {}
    escaping = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in links:
            links.update(links_out(root, [folder]))
        if base in links[folder] or "" in links[folder]:
            escaping.append(name)
    return escaping


def links_out(root: str, folders: Iterable[str]) -> dict[str, set[str]]:
    """Names of the links out of the root, by folder; {""} for a folder that itself is out.

    Args:
        root: image folder; may itself be a link.
        folders: relative to it.
    """
    real_root = os.path.realpath(root)
    return {folder: _links_in(Path(root) / folder, real_root) for folder in folders}


def _links_in(folder: Path, real_root: str) -> set[str]:
    """Names in a folder that are links out of the root; {""} where the folder itself is out."""
    if not folder.is_dir():
        return set()
    if not _inside(os.path.realpath(folder), real_root):
        return {""}
    with os.scandir(folder) as entries:
        return {
            entry.name
            for entry in entries
            if entry.is_symlink() and not _inside(os.path.realpath(entry.path), real_root)
        }


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
