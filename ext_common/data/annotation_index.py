"""Where every image and annotation of a checked annotation file lies, and what sampling needs.

Two forms of one thing: a file is indexed once (:func:`build_index`, in memory bounded by a part of
the file's size); later starts map the index. Records are parsed from the annotation file itself
when they are asked for, so nothing is held in memory but the operating system's pages, which all
loader workers share.

Legend: N images by sorted id, L image labels, K usable annotations by image.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ext_common.data import annotation_checks as checks
from ext_common.data.annotation_columns import AnnotationColumns
from ext_common.data.array_file import ArrayFileError, Arrays, map_arrays, read_header
from ext_common.data.findings import Findings
from ext_common.data.image_columns import ImageColumns
from ext_common.data.json_files import unreadable
from ext_common.data.json_stream import Element, JsonStream
from ext_common.data.label_table import LabelTable
from ext_common.data.lvis_json import (
    LoadOptions,
    checked_content,
    collect_annotations,
    collect_images,
    count_images,
    group_by_image,
)
from ext_common.data.progress import Progress
from ext_common.data.source_state import SourceState
from ext_common.errors import DatasetError

logger = logging.getLogger(__name__)

VERSION = 1
_GAP = 1 << 12  # bytes between two annotations that are read with them


class AnnotationIndex:
    """A checked annotation file.

    Args:
        source: the annotation file.
        header: ``state`` of the file, ``options`` it was checked with, ``category_ids`` by class,
            ``class_image_count``, ``folders`` of the images, ``warnings`` of the check.
        arrays: ``image_offset``, ``image_length``, ``image_crc``, ``height``, ``width``,
            ``captioned`` [N]; ``label_start`` [N + 1], ``label`` [L]; ``object_start`` [N + 1],
            ``object_offset``, ``object_length``, ``object_crc``, ``object_class``, ``object_mask``
            [K].
        stored: file that the arrays are mapped from; None = they are in memory. Pickled to
            another process, an index that is stored takes only its name along.
    """

    def __init__(
        self,
        source: str,
        header: Mapping[str, Any],
        arrays: Arrays,
        *,
        stored: Path | None = None,
    ) -> None:
        self.source = source
        self.header = dict(header)
        self.arrays = arrays
        self.stored = stored
        self._stream: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.arrays["image_offset"])

    def __getstate__(self) -> dict[str, Any]:
        own = {**self.__dict__, "_stream": None}
        return own if self.stored is None else {**own, "arrays": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.stored is None:
            return
        try:
            if read_header(self.stored) != self.header:
                raise self._changed()
            self.arrays = map_arrays(self.stored, check=False)
        except (OSError, ArrayFileError) as error:
            raise DatasetError(f"its index cannot be read: {error}", where=self.source) from error

    @cached_property
    def classes(self) -> dict[int, int]:
        """Contiguous class index by category id."""
        return {key: index for index, key in enumerate(self.header["category_ids"])}

    @property
    def labels(self) -> LabelTable:
        """Positive image labels of every image, contiguous."""
        return LabelTable(self.arrays["label_start"], self.arrays["label"])

    @property
    def object_classes(self) -> LabelTable:
        """Contiguous classes of the annotations of every image."""
        return LabelTable(self.arrays["object_start"], self.arrays["object_class"])

    def image(self, place: int) -> dict[str, Any]:
        """The entry of ``images``."""
        found: dict[str, Any] = self._entries("image", slice(place, place + 1))[0]
        return found

    def entries(self, place: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """An entry of ``images`` and its usable entries of ``annotations``, in the file's order.

        Raises:
            DatasetError: the file is not what was indexed.
        """
        starts_N1 = self.arrays["object_start"]
        objects = slice(int(starts_N1[place]), int(starts_N1[place + 1]))
        return self.image(place), self._entries("object", objects)

    def _entries(self, kind: str, places: slice) -> list[Any]:
        offsets = self.arrays[f"{kind}_offset"][places].tolist()
        lengths = self.arrays[f"{kind}_length"][places].tolist()
        checksums = self.arrays[f"{kind}_crc"][places].tolist()
        found = []
        held, begin = b"", 0
        for number, (offset, length, checksum) in enumerate(
            zip(offsets, lengths, checksums, strict=True)
        ):
            if offset + length > begin + len(held) or offset < begin:
                # neighbours in the file come with one call
                end = offset + length
                for after, more in zip(offsets[number + 1 :], lengths[number + 1 :], strict=True):
                    if not 0 <= after - end <= _GAP:
                        break
                    end = after + more
                held, begin = os.pread(self._descriptor(), end - offset, offset), offset
            content = held[offset - begin : offset - begin + length]
            if zlib.crc32(content) != checksum:
                raise self._changed()
            found.append(json.loads(content))
        return found

    def _descriptor(self) -> int:
        if self._stream is None:
            try:
                stream = open(self.source, "rb", buffering=0)  # noqa: SIM115 - stays open
            except OSError as error:
                raise unreadable(self.source, error) from error
            if not SourceState(**self.header["state"]).same_file(stream.fileno()):
                stream.close()
                raise self._changed()
            self._stream = stream
        return self._stream.fileno()

    def _changed(self) -> DatasetError:
        return DatasetError(
            "the annotation file was changed after it was indexed",
            where=self.source,
            fix="start again; replace annotation files only between runs",
        )


class _Spans:
    """Where entries lie in the file."""

    def __init__(self) -> None:
        self.offsets, self.lengths, self.checksums = array("q"), array("i"), array("I")

    def add(self, element: Element) -> None:
        self.offsets.append(element.offset)
        self.lengths.append(len(element.raw))
        self.checksums.append(zlib.crc32(element.raw))

    def arrays(self, kind: str, places: NDArray[np.int64]) -> Arrays:
        columns = {"offset": self.offsets, "length": self.lengths, "crc": self.checksums}
        return {f"{kind}_{name}": np.asarray(found)[places] for name, found in columns.items()}


def build_index(
    path: str | Path, options: LoadOptions, *, progress: Progress | None = None
) -> AnnotationIndex:
    """Read and check an annotation file in one pass.

    Args:
        path: COCO or LVIS layout.
        options: as for ``lvis_json.load_lvis_json``; the same problems are errors.
        progress: told (bytes read, bytes in all).

    Raises:
        DatasetError: unreadable file or bad content.
    """
    where = str(path)
    findings = Findings()
    images, annotations = collect_images((), findings, options), collect_annotations((), findings)
    image_spans, object_spans = _Spans(), _Spans()
    categories: list[Any] = []
    stream = JsonStream(path, ("images", "annotations", "categories"), progress=progress)
    state = _state(path)
    for element in stream.elements():
        if element.key == "images":
            images.add(element.value)
            image_spans.add(element)
        elif element.key == "annotations":
            annotations.add(element.value)
            object_spans.add(element)
        else:
            categories.append(element.value)
    if _state(path) != state:
        raise DatasetError("the file was changed while it was read", where=where, fix="try again")
    check_lists(stream.types, where)
    classes = checks.contiguous_ids(categories, where=where)
    resolved = checked_content(images, annotations, classes, findings, options, where)
    counts = count_images(images, annotations, resolved, classes, where)
    header = {
        "version": VERSION,
        "state": state.as_dict(),
        "options": index_options(options),
        "category_ids": list(classes),
        "class_image_count": counts,
        "folders": sorted(images.folders),
        "warnings": [
            [kind.key, findings.counts[kind], findings.first([kind])] for kind in findings.kinds()
        ],
    }
    arrays = _image_arrays(images, image_spans, classes)
    arrays |= _object_arrays(annotations, object_spans, resolved, images)
    return AnnotationIndex(where, header, arrays)


def check_lists(types: Mapping[str, str], where: str) -> None:
    """The lists of the COCO layout are lists; annotations may be missing or null.

    Args:
        types: type name by top-level key.
        where: the file.

    Raises:
        DatasetError: names the list.
    """
    for key in ("categories", "images"):
        if types.get(key) != "list":
            raise checks.no_list(key, where)
    if types.get("annotations", "list") not in ("list", "NoneType"):
        raise checks.no_list("annotations", where)


def index_options(options: LoadOptions) -> dict[str, Any]:
    """The options that change an index; links are checked at every start."""
    return {key: value for key, value in asdict(options).items() if key != "allow_links"}


def _state(path: str | Path) -> SourceState:
    try:
        return SourceState.of(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _image_arrays(images: ImageColumns, spans: _Spans, classes: Mapping[int, int]) -> Arrays:
    order_N = images.ids.order()
    table = LabelTable(images.label_starts_N1, checks.class_indices(images.labels_L, classes))
    table = table.rows(order_N)
    return {
        **spans.arrays("image", order_N),
        "height": images.heights_N[order_N],
        "width": images.widths_N[order_N],
        "captioned": images.captioned_N[order_N].astype(np.uint8),
        "label_start": table.starts_N1,
        "label": table.values_L.astype(np.int32),
    }


def _object_arrays(
    annotations: AnnotationColumns,
    spans: _Spans,
    resolved: checks.ResolvedAnnotations,
    images: ImageColumns,
) -> Arrays:
    starts_N1, kept_K = group_by_image(resolved, len(images))
    # rows of places in the file's annotations, put in the order of the image ids
    table = LabelTable(starts_N1, kept_K).rows(images.ids.order())
    kept_K = table.values_L.astype(np.int64, copy=False)
    return {
        **spans.arrays("object", kept_K),
        "object_start": table.starts_N1,
        "object_class": resolved.class_A[kept_K].astype(np.int32),
        "object_mask": annotations.masks_A[kept_K],
    }
