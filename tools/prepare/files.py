"""What the commands share: where files are, reading and writing them, progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detic_ext.data import builtin  # noqa: F401 - registers the published names
from detic_ext.data.preparation.annotation_file import write_annotations
from detic_ext.data.preparation.content_checks import check_content
from ext_common.data.annotation_checks import no_list
from ext_common.data.json_files import read_json
from ext_common.data.json_stream import JsonStream
from ext_common.errors import ConfigError, DatasetError
from ext_common.file_digest import sha256_of
from ext_common.images import printable

Content = dict[str, Any]


def registered_json(name: str) -> Path:
    """Where a registered dataset has its annotations (below ``DETECTRON2_DATASETS``).

    The commands write where the registry reads, so that no path is written down twice.
    """
    return Path(MetadataCatalog.get(name).json_file)


def registered_images(name: str) -> Path:
    """Where a registered dataset has its images."""
    return Path(MetadataCatalog.get(name).image_root)


def read_annotations(path: Path) -> Content:
    """Read an annotation file; large ones take a while, so the file is named first."""
    print(f"reading {printable(path)}", flush=True)
    return read_json(path)


def output_path(given: Path | None, source: Path, suffix: str) -> Path:
    """The output that was asked for, or ``source`` with a suffix behind its stem.

    Raises:
        ConfigError: it is the input.
    """
    path = given or source.with_name(f"{source.stem}{suffix}.json")
    if path.resolve() == source.resolve():
        raise ConfigError(
            "the output is the input", where=printable(path), fix="name another --output"
        )
    return path


def images_of(path: Path, progress: Callable[[int, int], None]) -> Iterator[Content]:
    """The images of an annotation file one by one, for files of millions of them."""
    stream = JsonStream(path, ("images",), progress=progress)
    for place, element in enumerate(stream.elements()):
        if not isinstance(element.value, dict):
            raise DatasetError(f"entry {place} of 'images' is no object", where=printable(path))
        yield element.value
    if stream.types.get("images") != "list":
        raise no_list("images", printable(path))


def save(path: Path, content: Mapping[str, Any], *, source: Path | str) -> None:
    """Check content, write it and say what was written."""
    check_content(content, where=f"made from {printable(source)}")
    save_unchecked(path, content)


def save_unchecked(path: Path, content: Mapping[str, Any]) -> None:
    """The same for content that is made while it is written."""
    counts = write_annotations(path, content)
    say_written(path, ", ".join(f"{count:,} {key}" for key, count in counts.items()))


def say_written(path: Path, what: str) -> None:
    """Name a written file with its content and checksum, to compare with others'."""
    print(f"wrote {printable(path)}: {what}; sha256 {sha256_of(path)}", flush=True)


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told (done, in all)."""
    with tqdm(desc=what, unit=unit, mininterval=0.5) as bar, logging_redirect_tqdm():

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield step
