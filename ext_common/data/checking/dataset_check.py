"""The whole check of a dataset: annotations, links, image files, order of classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from ext_common.data import problem_kinds as kinds
from ext_common.data.checking.annotation_file import (
    CheckedAnnotations,
    check_annotation_file,
    check_content,
    check_links,
    note_image,
)
from ext_common.data.checking.captions import CAPTIONS
from ext_common.data.checking.image_files import (
    FolderImages,
    ImageSource,
    ImageToCheck,
    Problem,
    TarImages,
    check_files,
)
from ext_common.data.class_names import check_same_order
from ext_common.data.dataset_spec import DatasetSpec
from ext_common.data.findings import Findings
from ext_common.data.progress import Progress
from ext_common.data.unlabelled_images import images_of_folder, images_of_tars
from ext_common.errors import DatasetError
from ext_common.images import DEFAULT_MAX_PIXELS
from ext_common.tar_shards import TarDataset

Bar = Callable[[str, str], AbstractContextManager[Progress | None]]
"""``bar(what, unit)`` shows the progress of one stage."""


def no_bar(what: str, unit: str) -> AbstractContextManager[Progress | None]:
    """Shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class FileChecks:
    """How closely image files are looked at.

    Args:
        sizes: read every header and compare the size.
        decode: read every pixel.
        processes: how many work.
        max_pixels: images of more are unreadable.
    """

    sizes: bool = True
    decode: bool = False
    processes: int = 1
    max_pixels: int = DEFAULT_MAX_PIXELS


def usable_processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def check_dataset(
    spec: DatasetSpec,
    files: FileChecks | None = None,
    *,
    tars: TarDataset | None = None,
    bar: Bar = no_bar,
) -> CheckedAnnotations:
    """Check a dataset.

    Args:
        spec: the dataset; with an empty image root no files are looked at.
        files: default :class:`FileChecks`.
        tars: archives of the images that have a ``tar_index``.
        bar: makes progress bars.

    Raises:
        DatasetError: missing files, no JSON, or categories that cannot be used.
    """
    files = files or FileChecks()
    if missing := [path for path in spec.missing_files() if path]:
        raise DatasetError(
            f"missing: {', '.join(missing)}",
            where=f"dataset {spec.name!r}",
            fix="datasets/README.md shows where each file belongs",
        )
    with bar("annotations", "B") as progress:
        if spec.type == "class_folders":
            checked = check_content(spec.content(), spec.load, where=spec.images)
        else:
            checked = check_annotation_file(
                spec.json, spec.load, captions=spec.type == CAPTIONS, progress=progress
            )
    if spec.images:
        check_links(checked, spec.images)
        _check_files(checked, FolderImages(spec.images), str, files, bar)
    if tars is not None:
        _check_files(checked, TarImages(tars), int, files, bar)
    return checked


def check_unlabelled(
    spec: DatasetSpec, files: FileChecks | None = None, *, bar: Bar = no_bar
) -> tuple[int, Findings]:
    """Check the images of a dataset that has nothing else; returns how many there are as well.

    Raises:
        DatasetError: no images, or archives that cannot be used.
    """
    files = files or FileChecks()
    findings = Findings()
    if spec.type == "image_tars":
        listed, tars = images_of_tars(spec.images)
        source: ImageSource = TarImages(tars)
    else:
        listed = images_of_folder(spec.images)
        source = FolderImages(str(listed.root))
    key = "image_name" if listed.root is not None else "tar_index"
    records = (listed[place] for place in range(len(listed)))
    images = [ImageToCheck(r["image_id"], r["image_id"], r[key], 0, 0) for r in records]
    for problem in _problems(images, source, files, bar):
        findings.add(problem.kind, problem.text)
    return len(images), findings


def note_class_orders(named: Sequence[tuple[str, CheckedAnnotations]]) -> None:
    """Note datasets that number their classes otherwise than the first; a part of them is fine."""
    if not named:
        return
    reference_name, reference = named[0]
    for name, checked in named[1:]:
        if not (checked.class_names and reference.class_names):
            continue  # captions
        pair = [(name, checked.class_names), (reference_name, reference.class_names)]
        (short, few), (long, many) = sorted(pair, key=lambda entry: len(entry[1]))
        try:
            check_same_order(short, few, long, many)
        except DatasetError as error:
            checked.findings.add(kinds.CLASS_ORDER, f"{error.where}: {error.what}")
        else:
            if len(few) < len(many):
                text = f"{short}: {len(few)} classes, {long}: {len(many)}"
                checked.findings.add(kinds.CLASS_NUMBER, text)


def _check_files(
    checked: CheckedAnnotations, source: ImageSource, kind: type, files: FileChecks, bar: Bar
) -> None:
    heights, widths = checked.images.heights_N.tolist(), checked.images.widths_N.tolist()
    images = [
        ImageToCheck(place, checked.images.ids[place], key, heights[place], widths[place])
        for place, key in enumerate(checked.keys)
        if key is not None and isinstance(key, kind)
    ]
    for problem in _problems(images, source, files, bar):
        note_image(checked, problem.place, problem.kind, problem.text)


def _problems(
    images: Sequence[ImageToCheck], source: ImageSource, files: FileChecks, bar: Bar
) -> Iterator[Problem]:
    with bar("decoding images" if files.decode else "image files", "image") as progress:
        yield from check_files(
            images,
            source,
            sizes=files.sizes,
            decode=files.decode,
            processes=files.processes,
            max_pixels=files.max_pixels,
            progress=progress,
        )


def spec_of_file(json_file: str, images: str, kind: str, *, allow_links: bool) -> DatasetSpec:
    """A dataset that is not registered.

    Args:
        json_file: annotation file.
        images: image root; empty = files are not looked at.
        kind: "coco", "lvis", "image_labels" or "captions".
        allow_links: see ``lvis_json.LoadOptions``.
    """
    spec = DatasetSpec(name=json_file, type=kind, images=images, json=json_file)
    load = replace(
        spec.load,
        labels_required=kind == "image_labels",
        short_coco_names=kind == "lvis",
        allow_links=allow_links,
    )
    return replace(spec, load=load)
