"""COCO captions as image records, and the synonyms of COCO's classes (specification 6.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from detic_ext.data.preparation.coco_synsets import COCO_SYNSETS
from detic_ext.data.preparation.content_checks import objects_of
from ext_common.data.annotation_checks import refuse

Record = dict[str, Any]


def gather_captions(content: Mapping[str, Any], *, where: str) -> list[Record]:
    """The images of a COCO captions file, each with its ``captions`` in file order.

    Args:
        content: ``images``, and ``annotations`` with ``image_id`` and ``caption``.
        where: the file, for messages.

    Raises:
        DatasetError: missing fields, or captions of unknown images.
    """
    images = objects_of(content, "images", where=where)
    known = {image.get("id") for image in images}
    captions: dict[Any, list[str]] = defaultdict(list)
    wrong = []
    for entry in objects_of(content, "annotations", where=where):
        text, image_id = entry.get("caption"), entry.get("image_id")
        if isinstance(text, str) and image_id in known:
            captions[image_id].append(text)
        else:
            wrong.append(entry.get("id"))
    refuse(wrong, "annotations without a caption, or of an unknown image", where=where)
    return [{**image, "captions": captions[image["id"]]} for image in images]


def with_synonyms(categories: Sequence[Mapping[str, Any]]) -> list[Record]:
    """COCO categories with the ``synonyms`` of the LVIS class that each one is.

    A category that is not named like a COCO class has its own name as the only synonym.
    """
    synonyms = {c["synset"]: list(c["synonyms"]) for c in lvis_categories()}
    own = {c["name"]: synonyms[COCO_SYNSETS[c["id"]]] for c in coco_categories()}
    return [{**c, "synonyms": own.get(c["name"], [c["name"]])} for c in categories]
