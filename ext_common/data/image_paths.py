"""File names in annotations stay below the image root: no ``..``, no absolute path, no link out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from ext_common.errors import DatasetError
from ext_common.images import printable

_SHOWN = 10


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
    real_root = os.path.realpath(root)
    links: dict[str, set[str]] = {}
    escaping = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in links:
            links[folder] = _links_in(Path(root) / folder, real_root)
        if base in links[folder] or "" in links[folder]:
            escaping.append(name)
    if escaping:
        shown = ", ".join(printable(name) for name in escaping[:_SHOWN])
        raise DatasetError(
            f"{len(escaping)} images are links that leave {root}: {shown}",
            where=where,
            fix="copy the images, or set allow_links: true where you trust the links",
        )


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
