"""Everything that can be told from an annotation file alone, without stopping at the first problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ext_common.data import annotation_checks as checks
from ext_common.data import problem_kinds as kinds
from ext_common.data.annotation_columns import AnnotationColumns
from ext_common.data.annotation_index import check_lists
from ext_common.data.checking.captions import CATEGORIES, add_caption
from ext_common.data.findings import Findings
from ext_common.data.id_column import Unusable
from ext_common.data.image_columns import ImageColumns
from ext_common.data.image_paths import escaping_links, image_name, leaves_root
from ext_common.data.json_stream import JsonStream
from ext_common.data.lvis_json import LoadOptions, collect_annotations, collect_images
from ext_common.data.progress import Progress


@dataclass
class CheckedAnnotations:
    """An annotation file after its check.

    Args:
        where: the file.
        options: how it is loaded for training.
        findings: what is wrong.
        images, annotations: columns of all entries, in the order of the file.
        resolved: what the annotations refer to.
        classes: contiguous index by category id.
        class_names: by contiguous index.
        keys: file name, tar number or None of every image.
        bad_images: places of images that cannot be used.
    """

    where: str
    options: LoadOptions
    findings: Findings
    images: ImageColumns
    annotations: AnnotationColumns
    resolved: checks.ResolvedAnnotations
    classes: dict[int, int]
    class_names: list[str]
    keys: list[str | int | None]
    bad_images: set[int] = field(default_factory=set)


def check_annotation_file(
    path: str | Path,
    options: LoadOptions,
    *,
    captions: bool = False,
    progress: Progress | None = None,
) -> CheckedAnnotations:
    """Check a file of any size.

    Args:
        path: COCO or LVIS layout.
        options: how it is loaded for training (``bad_boxes`` does not matter).
        captions: it has the layout of COCO's caption files.
        progress: told (bytes read, bytes in all).

    Raises:
        DatasetError: a file that is no such JSON (with line and column), or whose categories
            cannot be used: then nothing else can be told.
    """
    lists = ("images", "annotations", "categories")
    stream = JsonStream(path, lists, allow_constants=True, progress=progress)
    pairs = ((element.key, element.value) for element in stream.elements())
    checked = _check(pairs, str(path), options, stream, captions=captions)
    places = stream.constants.__getitem__
    checked.findings.add_all(kinds.NO_NUMBER, range(stream.constant_count), places)
    return checked


def check_content(
    content: Mapping[str, Any], options: LoadOptions, *, where: str
) -> CheckedAnnotations:
    """The same for content in memory."""
    lists = ("images", "annotations", "categories")
    check_lists({key: type(content[key]).__name__ for key in lists if key in content}, where)
    pairs = ((key, value) for key in lists for value in content.get(key) or ())
    return _check(pairs, where, options, None)


def check_links(checked: CheckedAnnotations, root: str) -> None:
    """Note images that are links out of the image root, unless that is allowed."""
    if checked.options.allow_links:
        return
    names = [key for key in checked.keys if isinstance(key, str)]
    escaping = set(escaping_links(root, names))
    for place, key in enumerate(checked.keys):
        if isinstance(key, str) and key in escaping:
            note_image(
                checked, place, kinds.LINK_LEAVES_ROOT, f"{checked.images.ids[place]} ({key})"
            )


def note_image(checked: CheckedAnnotations, place: int, kind: kinds.Kind, text: str) -> None:
    """Note a problem that makes an image unusable."""
    checked.findings.add(kind, text)
    checked.bad_images.add(place)


def _check(
    pairs: Iterable[tuple[str, Any]],
    where: str,
    options: LoadOptions,
    stream: JsonStream | None,
    *,
    captions: bool = False,
) -> CheckedAnnotations:
    findings = Findings()
    images, annotations = collect_images((), findings, options), collect_annotations((), findings)
    categories: list[Any] = []
    keys: list[str | int | None] = []
    for key, value in pairs:
        if key == "images":
            images.add(value)
            keys.append(_key(value, options))
        elif key == "annotations" and captions:
            add_caption(value, annotations, findings)
        elif key == "annotations":
            annotations.add(value)
        elif not captions:
            categories.append(value)
    if stream is not None:
        given = {"categories": "list"} if captions else {}
        check_lists({**stream.types, **given}, where)
    categories = CATEGORIES if captions else categories
    classes = checks.contiguous_ids(categories, where=where)
    checks.check_images(images, classes, findings)
    resolved = checks.check_annotations(annotations, images, classes, findings)
    names = {category["id"]: category["name"] for category in categories}
    checked = CheckedAnnotations(
        where,
        options,
        findings,
        images,
        annotations,
        resolved,
        {} if captions else classes,
        [] if captions else [names[category_id] for category_id in classes],
        keys,
    )
    _note_repeated_names(checked)
    _note_empty_images(checked, crowds=captions)
    return checked


def _key(image: Any, options: LoadOptions) -> str | int | None:
    """Where an image is; None also where its name leaves the root."""
    if not isinstance(image, dict):
        return None
    key = image_name(image, short_coco_names=options.short_coco_names)
    return None if isinstance(key, str) and leaves_root(key) else key


def _note_repeated_names(checked: CheckedAnnotations) -> None:
    names = [key for key in checked.keys if key is not None]
    if len(set(names)) == len(names):
        return
    for name, count in Counter(names).items():
        if count > 1:
            checked.findings.add(kinds.NAME_TWICE, f"{name} ({count} images)")


def _note_empty_images(checked: CheckedAnnotations, *, crowds: bool) -> None:
    """Note images of which there is nothing to learn; crowds count where they are captions."""
    images, resolved = checked.images, checked.resolved
    counted_A = crowds | ~checked.annotations.crowd_A
    own_A = resolved.image_A[(resolved.image_A >= 0) & counted_A]
    objects_N = np.bincount(own_A, minlength=len(images)) > 0
    labelled_N = np.diff(images.label_starts_N1) > 0
    empty_N = ~(objects_N | labelled_N | images.captioned_N | images.ids.of_type(Unusable))
    checked.findings.add_all(
        kinds.IMAGE_WITHOUT_ANNOTATIONS, np.flatnonzero(empty_N), images.ids.__getitem__
    )
