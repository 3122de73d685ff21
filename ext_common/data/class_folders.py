"""Image labels from a tree with one folder per class, as ImageNet has it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ext_common.data.annotation_checks import first_ten, refuse
from ext_common.data.class_names import folded
from ext_common.data.json_files import read_json, write_json_atomic
from ext_common.errors import DatasetError, ImageError
from ext_common.images import IMAGE_SUFFIXES, image_size, printable

logger = logging.getLogger(__name__)

Category = Mapping[str, Any]
Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every folder."""

_THREADS = 8  # headers are read from disk, not computed
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class FolderOptions:
    """How folders become classes.

    Args:
        folder_map: class name, synset or synonym of a folder whose own name is none of these
            (``n02084071`` -> ``dog.n.01``).
        unknown_folders: "error", or "skip" folders that match no class.
        bad_files: "error", or "skip" files that are not readable images.
    """

    folder_map: Mapping[str, str] = field(default_factory=dict)
    unknown_folders: str = "error"
    bad_files: str = "error"

    def __post_init__(self) -> None:
        for name in ("unknown_folders", "bad_files"):
            if getattr(self, name) not in ("error", "skip"):
                raise DatasetError(
                    f"unknown policy {getattr(self, name)!r}", where=name, fix="error or skip"
                )


def import_class_folders(
    root: str | Path,
    classes: Sequence[Category | str] | None = None,
    options: FolderOptions | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """List the images of a folder-per-class tree; sizes are read without decoding.

    Args:
        root: folder that holds the class folders; images lie directly in those.
        classes: LVIS-style categories (``id``, ``name``; optional ``synset``, ``synonyms``) or
            names (ids 1, 2, ...); None = one class per folder.
        options: default :class:`FolderOptions`.
        progress: told how far it is.

    Returns:
        LVIS-style content: ``images`` (``id`` from 1 in order of folder and file name,
        ``file_name`` "folder/file", ``height``, ``width`` in pixels, upright;
        ``pos_category_ids``), empty ``annotations``, ``categories``.

    Raises:
        DatasetError: no folders, folders that match no class, or unreadable files.
    """
    options = options or FolderOptions()
    root = Path(root)
    folders = _class_folders(root)
    categories = as_categories(classes if classes is not None else [f.name for f in folders])
    class_of = _match_folders([f.name for f in folders], categories, options, str(root))
    files = {folder.name: _image_files(folder) for folder in folders if folder.name in class_of}
    empty = [name for name, found in files.items() if not found]
    if empty:
        logger.warning("%s: folders without images: %s", root, first_ten(empty))
    images: list[dict[str, Any]] = []
    bad: list[str] = []
    report = _reporter(root, sum(map(len, files.values())), progress)
    with ThreadPoolExecutor(_THREADS) as threads:
        for folder, found in files.items():
            sizes = threads.map(size_or_error, [entry.path for entry in found])
            for entry, size in zip(found, sizes, strict=True):
                if isinstance(size, ImageError):
                    bad.append(f"{printable(folder)}/{printable(entry.name)} ({size.what})")
                    continue
                images.append(
                    {
                        "id": len(images) + 1,
                        "file_name": f"{folder}/{entry.name}",
                        "height": size[0],
                        "width": size[1],
                        "pos_category_ids": [class_of[folder]],
                    }
                )
            report(len(images) + len(bad))
    _handle_bad_files(bad, options, str(root))
    if not images:
        raise DatasetError("no images in any class folder", where=str(root))
    return {"images": images, "annotations": [], "categories": categories}


def load_class_folders(
    root: str | Path,
    index: str | Path,
    classes: Sequence[Category | str] | None = None,
    options: FolderOptions | None = None,
) -> dict[str, Any]:
    """:func:`import_class_folders` with its result kept in ``index``.

    The file is used again as long as the tree (names, sizes, times), the classes and the options
    are the same. Where it cannot be written, a warning says so and the import is done each time.

    Raises:
        DatasetError: as :func:`import_class_folders`.
    """
    options = options or FolderOptions()
    index = Path(index)
    fingerprint = _fingerprint(Path(root), classes, options)
    if index.is_file():
        try:
            content = read_json(index)
        except DatasetError as error:
            logger.warning("%s; the folders are read again", error)
        else:
            if content.get("fingerprint") == fingerprint:
                return content
    content = {**import_class_folders(root, classes, options), "fingerprint": fingerprint}
    try:
        write_json_atomic(index, content)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): the next start reads the folders again", index, error
        )
    return content


def read_folder_map(path: str | Path) -> dict[str, str]:
    """Lines ``FOLDER CLASS`` (blanks or a tab between; the class may have blanks; # comments).

    Raises:
        DatasetError: no such file, a line without a class, or a folder given twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"folder map cannot be read: {error}", where=str(path)) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        folder, _, name = line.strip().replace("\t", " ").partition(" ")
        where = f"{path}, line {number}"
        if not name.strip():
            raise DatasetError(f"no class for folder {folder!r}", where=where)
        if folder in found:
            raise DatasetError(f"folder {folder!r} is given twice", where=where)
        found[folder] = name.strip()
    return found


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DatasetError("no such folder", where=str(root), fix="check the path")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DatasetError(
            "no class folders", where=str(root), fix="one folder per class is needed"
        )
    return folders


def _image_files(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = [e for e in entries if os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES]
    return sorted(found, key=lambda entry: entry.name)


def as_categories(classes: Sequence[Category | str]) -> list[dict[str, Any]]:
    """Categories of a list of names (ids 1, 2, ...); categories stay what they are."""
    return [
        {"id": number, "name": entry} if isinstance(entry, str) else dict(entry)
        for number, entry in enumerate(classes, start=1)
    ]


def _match_folders(
    folders: Sequence[str], categories: Sequence[Category], options: FolderOptions, where: str
) -> dict[str, int]:
    """Category id by folder name."""
    strays = sorted(set(options.folder_map) - set(folders))
    if strays:
        logger.warning(
            "%s: the folder map names folders that are not there: %s", where, first_ten(strays)
        )
    lookups = _lookups(categories)
    matched: dict[str, int] = {}
    unknown = []
    for folder in folders:
        wanted = options.folder_map.get(folder, folder)
        ids: set[int] = next((t[k(wanted)] for t, k in lookups if k(wanted) in t), set())
        if len(ids) > 1:
            raise DatasetError(
                f"folder {folder!r} fits several classes, ids {sorted(ids)}",
                where=where,
                fix="name the class exactly in the folder map",
            )
        if ids:
            matched[folder] = next(iter(ids))
        else:
            unknown.append(folder)
    if options.unknown_folders == "error":
        fix = "rename them, list them in a folder map, or set unknown_folders: skip"
        refuse(unknown, "folders that match no class", where=where, fix=fix)
    elif unknown:
        logger.warning("%s: skipped %d folders: %s", where, len(unknown), first_ten(unknown))
    return matched


def _lookups(
    categories: Sequence[Category],
) -> list[tuple[dict[str, set[int]], Callable[[str], str]]]:
    """(ids by key, text -> key), the surest first: name, synset, folded name, folded synonym."""

    def table(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
        ids: dict[str, set[int]] = {}
        for key, category_id in pairs:
            ids.setdefault(key, set()).add(category_id)
        return ids

    return [
        (table((c["name"], c["id"]) for c in categories), str),
        (table((c["synset"], c["id"]) for c in categories if c.get("synset")), str),
        (table((folded(c["name"]), c["id"]) for c in categories), folded),
        (table((folded(s), c["id"]) for c in categories for s in c.get("synonyms", ())), folded),
    ]


def size_or_error(path: str) -> tuple[int, int] | ImageError:
    """(height, width) of an image file, or why it has none."""
    try:
        return image_size(path)
    except ImageError as error:
        return error


def _handle_bad_files(bad: Sequence[str], options: FolderOptions, where: str) -> None:
    if options.bad_files == "error":
        fix = "repair or remove them, or set bad_files: skip"
        refuse(bad, "files that are not readable images", where=where, fix=fix)
    elif bad:
        logger.warning("%s: left out %d unreadable files: %s", where, len(bad), first_ten(bad))


def _reporter(root: Path, total: int, progress: Progress | None) -> Callable[[int], None]:
    """Passes progress on, and to the log every ten seconds."""
    last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        if progress is not None:
            progress(done, total)
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            logger.info("%s: %d of %d images listed", root, done, total)

    return report


def _fingerprint(root: Path, classes: Sequence[Any] | None, options: FolderOptions) -> str:
    digest = hashlib.sha256()
    asked = (
        as_categories(classes) if classes is not None else None,
        sorted(options.folder_map.items()),
        options.unknown_folders,
        options.bad_files,
    )
    digest.update(json.dumps(asked, sort_keys=True).encode())
    for folder in _class_folders(root):
        digest.update(f"\n{folder.name}\n".encode(errors="surrogateescape"))
        for entry in _image_files(folder):
            stat = entry.stat()
            line = f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()
