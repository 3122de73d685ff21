"""The ``images`` of an annotation file as columns: what checks, sampling and the index need.

Legend: N images, L image labels (the labels of image n are ``starts[n]`` to ``starts[n + 1]``).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ext_common.data import problem_kinds as kinds
from ext_common.data.findings import SHOWN, Findings
from ext_common.data.id_column import IdColumn, Unusable
from ext_common.data.image_paths import image_name, leaves_root

_LARGEST_SIDE = 2**31 - 1
LONG_CAPTION = 75
"""Words; CLIP's text encoder takes 77 tokens with the first and the last."""


class ImageColumns:
    """Collects images one after the other and notes what is wrong with each by itself.

    What needs all of them, or the categories, is checked by ``annotation_checks.check_images``.

    Args:
        findings: where problems are noted.
        labels_required: every image needs a positive label.
        short_coco_names: see ``lvis_json.LoadOptions``.

    Attributes:
        ids: image ids.
        folders: folders that the file names lie in, relative to the image root.
        negative: images by category id in ``neg_category_ids``: (how many, the first of them).
    """

    def __init__(
        self,
        findings: Findings,
        *,
        labels_required: bool = False,
        short_coco_names: bool = True,
    ) -> None:
        self._findings = findings
        self._labels_required = labels_required
        self._short_coco_names = short_coco_names
        self.ids = IdColumn()
        self.folders: set[str] = set()
        self.negative: dict[int, tuple[int, list[str]]] = {}
        self._heights, self._widths = array("i"), array("i")
        self._label_starts, self._labels = array("q", [0]), array("q")
        self._captioned = bytearray()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, image: Any) -> None:
        """Check one entry of ``images``; an unusable one is noted and left out."""
        place = len(self)
        if not isinstance(image, dict):
            self._findings.add(kinds.IMAGE_ENTRY, place)
            image = {"id": Unusable(image)}
        own_id = image.get("id")
        if type(own_id) is not int and not isinstance(own_id, str):
            if not isinstance(own_id, Unusable):
                self._findings.add(kinds.IMAGE_WITHOUT_ID, place)
            own_id = Unusable(own_id)
        self.ids.append(own_id)
        sides = [image.get(side) for side in ("height", "width")]
        if not all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in sides):
            self._note(kinds.IMAGE_WITHOUT_SIZE, own_id)
            sides = [0, 0]
        self._heights.append(sides[0] or 0)
        self._widths.append(sides[1] or 0)
        self._add_name(image, own_id)
        self._add_labels(image, own_id)
        self._add_captions(image, own_id)

    @property
    def heights_N(self) -> NDArray[np.int32]:
        """int32 [N], pixels; 0 where the file does not say."""
        return np.asarray(self._heights)

    @property
    def widths_N(self) -> NDArray[np.int32]:
        """int32 [N], pixels; 0 where the file does not say."""
        return np.asarray(self._widths)

    @property
    def label_starts_N1(self) -> NDArray[np.int64]:
        """int64 [N + 1]: where the labels of each image start."""
        return np.asarray(self._label_starts)

    @property
    def labels_L(self) -> NDArray[np.int64]:
        """int64 [L]: positive labels of all images, category ids."""
        return np.asarray(self._labels)

    @property
    def captioned_N(self) -> NDArray[np.bool_]:
        """bool [N]: which images have captions."""
        return np.frombuffer(bytes(self._captioned), dtype=bool)

    def _note(self, kind: kinds.Kind, image_id: Any, more: str = "") -> None:
        if not isinstance(image_id, Unusable):  # counted as having no id
            self._findings.add(kind, f"{image_id}{more}")

    def _add_name(self, image: Mapping[str, Any], image_id: Any) -> None:
        name = image_name(image, short_coco_names=self._short_coco_names)
        if name is None:
            self._note(kinds.IMAGE_WITHOUT_NAME, image_id)
        elif isinstance(name, str):
            if leaves_root(name):
                self._note(kinds.NAME_LEAVES_ROOT, image_id, f" ({name!r})")
            else:
                self.folders.add(name.rpartition("/")[0])

    def _add_labels(self, image: Mapping[str, Any], image_id: Any) -> None:
        positive = image.get("pos_category_ids") or []
        negative = image.get("neg_category_ids") or []
        if not _are_ids(positive) or not _are_ids(negative):
            self._note(kinds.LABEL_TYPE, image_id)
            positive, negative = [], []
        elif self._labels_required and not positive:
            self._note(kinds.LABEL_MISSING, image_id)
        if len(positive) > 1 and len(set(positive)) != len(positive):
            self._note(kinds.LABEL_TWICE, image_id)
        self._labels.extend(positive)
        self._label_starts.append(len(self._labels))
        for category_id in negative:
            count, first = self.negative.get(category_id) or (0, [])
            if count < SHOWN:
                first.append(str(image_id))
            self.negative[category_id] = (count + 1, first)

    def _add_captions(self, image: Mapping[str, Any], image_id: Any) -> None:
        self._captioned.append(bool(image.get("captions")))
        if "captions" not in image:
            return
        captions = image["captions"]
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            self._note(kinds.CAPTION_TYPE, image_id)
        elif not all(text.strip() for text in captions):
            self._note(kinds.CAPTION_EMPTY, image_id)
        elif any(len(text.split()) > LONG_CAPTION for text in captions):
            self._note(kinds.CAPTION_LONG, image_id)


def _are_ids(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and abs(value) <= _LARGEST_SIDE for value in values
    )
