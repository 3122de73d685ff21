"""``--vocabulary``: class lists by the published names, or whatever a Vocabulary can be made of."""

from __future__ import annotations

import argparse

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from ext_common.errors import ExtError, VocabularyError
from ext_common.vocabulary import Vocabulary

CUSTOM = "custom"
# class lists that nobody may ship along: they are read from the dataset's annotation file
_FROM_ANNOTATIONS = {"objects365": "objects365_v2_val", "openimages": "oid_val_expanded"}
BUILT_IN = ("lvis", "coco", *_FROM_ANNOTATIONS)


def choose_vocabulary(arguments: argparse.Namespace) -> Vocabulary | None:
    """What the command line asks for; None = the model's own classes.

    Raises:
        VocabularyError: names that cannot be had, or ``custom`` without names.
    """
    spec, custom = arguments.vocabulary.strip(), arguments.custom_vocabulary.strip()
    if custom or spec == CUSTOM:
        if spec not in ("", CUSTOM) or not custom:
            raise VocabularyError(
                f"{spec!r} and {custom!r} together",
                where="--vocabulary, --custom_vocabulary",
                fix='--vocabulary custom --custom_vocabulary "a,b", or --vocabulary "a,b"',
            )
        return Vocabulary.parse(custom)
    if spec in BUILT_IN:
        return _built_in(spec)
    return Vocabulary.parse(spec) if spec else None


def _built_in(name: str) -> Vocabulary:
    if name == "lvis":
        return Vocabulary.from_names(get_lvis_instances_meta("lvis_v1")["thing_classes"])
    if name == "coco":
        return Vocabulary.from_names([c["name"] for c in COCO_CATEGORIES if c["isthing"]])
    dataset = _FROM_ANNOTATIONS[name]
    try:
        return Vocabulary.from_dataset(dataset)
    except ExtError as error:
        path = getattr(MetadataCatalog.get(dataset), "json_file", "its annotation file")
        raise VocabularyError(
            f"the classes of {name} are read from {path}, which is not there",
            where="--vocabulary",
            fix="put the file there, set DETECTRON2_DATASETS, or give a file of names or "
            "embeddings (.txt, .json, .npz)",
        ) from error
