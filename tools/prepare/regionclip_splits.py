"""RegionCLIP's open-vocabulary files: COCO with 48, 17 and 65 classes, LVIS with 866.

    python tools/prepare_data.py regionclip-splits --output datasets/coco/annotations \\
        --coco datasets/coco/annotations/instances_val2017.json
    python tools/prepare_data.py regionclip-splits --output datasets/lvis \\
        --lvis datasets/lvis/lvis_v1_train.json

Of each COCO file, ovd_ins_{train,val}2017_{b,t,all}.json are written: what the datasets
coco_2017_ovd_* read. Of LVIS, lvis_v1_train_base.json: the classes that are not rare, in order of
their ids. An image belongs to a file where it shows one of its classes. Class counts other than
those of the published splits are an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.preparation.content_checks import objects_of, require_field
from detic_ext.data.preparation.ov_coco import only_classes
from ext_common.errors import DatasetError

from .files import Content, read_annotations, save

BASE, NOVEL = frozenset(BASE_IDS), frozenset(NOVEL_IDS)
LVIS_BASE_CLASSES = 866
_RARE = "r"
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--coco", type=Path, nargs="*", default=[], metavar="FILE", help="COCO instances files"
    )
    parser.add_argument("--lvis", type=Path, metavar="FILE", help="LVIS v1 training file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder")
    parser.add_argument(
        "--any-count",
        action="store_true",
        help="LVIS: accept another number of common and frequent classes than 866",
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if not args.coco and args.lvis is None:
        raise DatasetError("nothing to do", where="command line", fix="give --coco or --lvis")
    for path in args.coco:
        content = read_annotations(path)
        name = path.stem.removeprefix("instances_")
        for split, ids in (("b", BASE), ("t", NOVEL), ("all", BASE | NOVEL)):
            part = coco_split(content, ids, where=str(path))
            save(args.output / f"ovd_ins_{name}_{split}.json", part, source=path)
    if args.lvis is not None:
        part = lvis_base(read_annotations(args.lvis), str(args.lvis), any_count=args.any_count)
        save(args.output / "lvis_v1_train_base.json", part, source=args.lvis)
    return 0


def coco_split(content: Content, ids: Collection[int], *, where: str) -> Content:
    """The classes of a split, each marked ``seen`` (base) or ``unseen`` (novel)."""
    part = only_classes(content, ids, where=where)
    part["categories"] = [
        {**category, "split": "seen" if category["id"] in BASE else "unseen"}
        for category in part["categories"]
    ]
    return part


def lvis_base(content: Content, where: str, *, any_count: bool = False) -> Content:
    """Common and frequent classes, the images that show one, and no lists of absent classes.

    Raises:
        DatasetError: categories without a frequency, or another number of classes.
    """
    categories = objects_of(content, "categories", where=where)
    require_field(categories, "frequency", where=where)
    kept = {category["id"] for category in categories if category["frequency"] != _RARE}
    if len(kept) != LVIS_BASE_CLASSES and not any_count:
        raise DatasetError(
            f"{len(kept)} common and frequent classes instead of {LVIS_BASE_CLASSES}",
            where=where,
            fix="give LVIS v1's training file, or --any-count",
        )
    part = only_classes(content, kept, where=where)
    part["images"] = [
        {key: value for key, value in image.items() if key not in _LISTS}
        for image in part["images"]
    ]
    return part
