"""A repaired copy of an annotation file: entries that cannot be used left out, or boxes cut.

Everything that is not repaired is copied byte for byte, numbers included.

Legend: N images, A annotations.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.atomic_file import replacing
from ext_common.data import annotation_checks as checks
from ext_common.data.checking.annotation_file import CheckedAnnotations
from ext_common.data.id_column import Unusable
from ext_common.data.json_stream import Element, EveryKey, JsonStream
from ext_common.data.progress import Progress
from ext_common.errors import DatasetError

FIXES = ("clip", "drop")


@dataclass(frozen=True)
class Repair:
    """What is left out, and whether boxes are cut.

    Args:
        checked: the file.
        clip: boxes that are partly outside are cut at the border; otherwise they stay.
        dropped_N: images that are left out, with their annotations.
        dropped_A: annotations that are left out.
    """

    checked: CheckedAnnotations
    clip: bool
    dropped_N: NDArray[np.bool_]
    dropped_A: NDArray[np.bool_]

    @classmethod
    def of(cls, checked: CheckedAnnotations, fix: str) -> Repair:
        """The repair that a check asks for.

        Args:
            checked: the file.
            fix: one of :data:`FIXES`.
        """
        if fix not in FIXES:
            raise DatasetError(f"unknown repair {fix!r}", where="--fix", fix=" or ".join(FIXES))
        dropped_N = _dropped_images(checked)
        resolved, annotations = checked.resolved, checked.annotations
        known_A = (resolved.image_A >= 0) & (resolved.class_A >= 0)
        kept_A = resolved.usable_A | (annotations.crowd_A & known_A)
        kept_A[annotations.ids.repeated()] = False
        bad = annotations.bad_masks | annotations.bad_captions | annotations.strange
        kept_A[sorted(bad)] = False
        if len(dropped_N):
            kept_A &= ~dropped_N[resolved.image_A]
        return cls(checked, fix == "clip", dropped_N, ~kept_A)


def write_repaired(
    source: str | Path, target: str | Path, repair: Repair, *, progress: Progress | None = None
) -> Counter[str]:
    """Write the repaired file atomically.

    Args:
        source: the file that was checked.
        target: another file.
        repair: what to change.
        progress: told (bytes read, bytes in all).

    Returns:
        How much was changed: "images left out", "annotations left out", "boxes cut", "labels
        removed", "captions removed".

    Raises:
        DatasetError: source and target are one file.
        OSError: the folder cannot be written, or the disk is full.
    """
    source, target = Path(source), Path(target)
    if target.resolve() == source.resolve():
        raise DatasetError(
            "the repaired file would replace its source", where=str(source), fix="name another"
        )
    stream = JsonStream(source, EveryKey(), allow_constants=True, progress=progress)
    changes: Counter[str] = Counter()
    with replacing(target) as temporary, temporary.open("wb") as file:
        for part in _parts(stream, repair, changes):
            file.write(part)
    return changes


def _dropped_images(checked: CheckedAnnotations) -> NDArray[np.bool_]:
    images = checked.images
    dropped_N = (images.heights_N <= 0) | images.ids.of_type(Unusable)
    dropped_N[images.ids.repeated()] = True
    dropped_N |= np.array([key is None for key in checked.keys], dtype=bool)
    dropped_N[sorted(checked.bad_images)] = True
    if checked.options.labels_required:
        known_L = checks.class_indices(images.labels_L, checked.classes) >= 0
        owners_L = np.repeat(np.arange(len(images)), np.diff(images.label_starts_N1))
        dropped_N |= np.bincount(owners_L[known_L], minlength=len(images)) == 0
    return dropped_N


def _parts(stream: JsonStream, repair: Repair, changes: Counter[str]) -> Iterator[bytes]:
    """The text of the new file."""
    written: set[str] = set()

    def start(key: str) -> bytes:
        text = f"{',' if written else '{'}\n{json.dumps(key)}: ".encode()
        written.add(key)
        return text

    def without_elements() -> Iterator[bytes]:
        """Other values and empty lists, which the stream has met without giving anything out."""
        for key, kind in list(stream.types.items()):
            if key not in written:
                value = [] if kind == "list" else stream.values[key]
                yield start(key) + _encoded(value, stream.path)

    for key, elements in groupby(stream.elements(), key=lambda element: element.key):
        own_kind = stream.types.pop(key)
        yield from without_elements()
        stream.types[key] = own_kind
        yield start(key)
        opening = b"["
        for text in _repaired_texts(elements, repair, changes):
            yield opening + b"\n" + text
            opening = b","
        yield b"]" if opening == b"," else b"[]"
    yield from without_elements()
    yield b"\n}\n"


def _repaired_texts(
    elements: Iterator[Element], repair: Repair, changes: Counter[str]
) -> Iterator[bytes]:
    for place, element in enumerate(elements):
        value = element.value
        if element.key == "images":
            value = None if repair.dropped_N[place] else _repaired_image(value, repair, changes)
        elif element.key == "annotations":
            value = None if repair.dropped_A[place] else _repaired_object(value, repair, place)
        raw = element.raw
        if value is not None and value is not element.value:
            changes["boxes cut"] += element.key == "annotations"
            raw = _encoded(value, None)
        if value is None or (_has_constant(raw) and element.key in ("images", "annotations")):
            changes[f"{element.key} left out"] += 1
        else:
            yield raw


def _repaired_image(image: dict[str, Any], repair: Repair, changes: Counter[str]) -> dict[str, Any]:
    """The image itself, or a copy with good labels and captions only."""
    repaired = dict(image)
    classes = repair.checked.classes
    for field in ("pos_category_ids", "neg_category_ids"):
        if labels := image.get(field):
            labels = labels if isinstance(labels, list) else [labels]
            kept = [key for key in labels if type(key) is int and key in classes]
            kept = list(dict.fromkeys(kept)) if field.startswith("pos") else kept
            repaired[field] = kept
            changes["labels removed"] += len(labels) - len(kept)
    if "captions" in image:
        captions = image["captions"] if isinstance(image["captions"], list) else [None]
        good = [text for text in captions if isinstance(text, str) and text.strip()]
        repaired["captions"] = good
        changes["captions removed"] += len(captions) - len(good)
    return image if repaired == image else repaired


def _repaired_object(
    annotation: dict[str, Any], repair: Repair, place: int
) -> dict[str, Any] | None:
    """The annotation itself, or a copy with its box cut at the border."""
    checked = repair.checked
    if not repair.clip or checked.annotations.crowd_at(place):
        return annotation
    owner = int(checked.resolved.image_A[place])
    width, height = int(checked.images.widths_N[owner]), int(checked.images.heights_N[owner])
    box = annotation["bbox"]
    inside = box[0] >= 0 and box[1] >= 0 and box[0] + box[2] <= width and box[1] + box[3] <= height
    if inside:
        return annotation
    return {**annotation, "bbox": checks.clipped_box(box, width, height)}


def _has_constant(raw: bytes) -> bool:
    """Whether a number that JSON does not have is somewhere in an element."""
    if b"NaN" not in raw and b"Infinity" not in raw:
        return False
    try:
        json.dumps(json.loads(raw), allow_nan=False)
    except ValueError:
        return True
    return False


def _encoded(value: Any, path: Path | None) -> bytes:
    try:
        # an element is looked at afterwards
        return json.dumps(value, ensure_ascii=False, allow_nan=path is None).encode()
    except ValueError as error:
        raise DatasetError(
            "a value outside the lists is NaN or Infinity", where=str(path), fix="repair it by hand"
        ) from error
