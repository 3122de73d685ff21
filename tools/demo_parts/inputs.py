"""Which pictures to look at, and where their results go."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ext_common.errors import ConfigError, ImageError
from ext_common.images import IMAGE_SUFFIXES, find_images, image_size, printable

SHEET = "contact_sheet.jpg"


@dataclass(frozen=True)
class Input:
    """A picture to look at."""

    path: Path
    named: bool  # by the user itself: then it must be readable; found ones may be skipped
    output_name: str


def collect_inputs(patterns: Sequence[str]) -> list[Input]:
    """Files, the images of folders, and what patterns match, each once, in this order.

    Raises:
        ImageError: nothing there, or nothing in it; or a named file that is no image.
    """
    named_of: dict[Path, bool] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found, named = find_images(path), False
            hint = (
                f"readable endings: {' '.join(sorted(IMAGE_SUFFIXES))}; for subfolders: '{path}/**'"
            )
        elif path.exists() or not glob.has_magic(pattern):
            image_size(path)  # before the model is built, which takes longer
            found, named, hint = [path], True, ""
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = [Path(name) for name in sorted(names) if is_image_file(Path(name))]
            named, hint = False, "check the pattern; quote it, so that the shell leaves it alone"
        if not found:
            raise ImageError("no image matches", where=printable(pattern), fix=hint)
        for entry in found:
            named_of[entry] = named_of.get(entry, False) or named
    taken = {SHEET}
    return [Input(path, named, _output_name(path, taken)) for path, named in named_of.items()]


def is_image_file(path: Path) -> bool:
    """Whether a file's ending is one of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _output_name(path: Path, taken: set[str]) -> str:
    """A name for the drawn picture that no other has; adds it to ``taken``."""
    stem = "".join(char if char.isprintable() else "_" for char in path.stem)
    stem = os.fsencode(stem)[:180].decode("utf-8", "ignore")  # room for what is added
    name, number = f"{stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.jpg"
    taken.add(name)
    return name


def prepare_folder(folder: Path, inputs: Sequence[Input]) -> Path:
    """Make the output folder, before any work is done.

    Raises:
        ConfigError: it is a file, cannot be made or written, or a result would replace an input.
    """
    where = printable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be made: {error.strerror}"
        raise ConfigError(f"the output {what}", where=where, fix="name a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError("the folder cannot be written", where=where, fix="choose another")
    sources = {item.path.resolve() for item in inputs}
    for item in inputs:
        if (folder / item.output_name).resolve() in sources:
            raise ConfigError(
                f"drawing {printable(item.path)} would overwrite an input, {item.output_name}",
                where=where,
                fix="choose another output folder",
            )
    return folder
