"""OV-COCO: the base (48 classes), novel (17) and joint (65) files, from COCO's own.

    python tools/prepare_data.py ovcoco-split \\
        --train datasets/coco/annotations/instances_train2017.json \\
        --val datasets/coco/annotations/instances_val2017.json

Written are instances_train2017_seen_2, instances_val2017_{seen,unseen,all}_2, the two *_oriorder
files under 80 classes, and the frequency file of the training set: what the datasets
coco_zeroshot_* and coco_generalized_zeroshot_val read. An image belongs to a file where it shows
one of its classes. Crowd annotations stay, marked as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from detic_ext.data.coco_split import BASE_IDS, NOVEL_IDS
from detic_ext.data.preparation.annotation_file import write_annotations
from detic_ext.data.preparation.category_counts import count_categories
from detic_ext.data.preparation.content_checks import objects_of
from detic_ext.data.preparation.ov_coco import only_classes, original_order

from .files import Content, output_path, read_annotations, registered_json, save, say_written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--train", type=Path, metavar="FILE", help="default: coco_2017_train's")
    parser.add_argument("--val", type=Path, metavar="FILE", help="default: coco_2017_val's")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: coco_zeroshot_train's folder"
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    train = args.train or registered_json("coco_2017_train")
    val = args.val or registered_json("coco_2017_val")
    folder = args.output or registered_json("coco_zeroshot_train").parent
    content = read_annotations(train)
    _save_part(content, train, folder, "seen", BASE_IDS, oriorder=True, frequencies=True)
    content = read_annotations(val)
    _save_part(content, val, folder, "seen", BASE_IDS)
    _save_part(content, val, folder, "unseen", NOVEL_IDS)
    _save_part(content, val, folder, "all", {*BASE_IDS, *NOVEL_IDS}, oriorder=True)
    return 0


def _save_part(
    content: Content,
    source: Path,
    folder: Path,
    name: str,
    ids: Collection[int],
    *,
    oriorder: bool = False,
    frequencies: bool = False,
) -> None:
    where = str(source)
    part = only_classes(content, ids, where=where)
    path = output_path(folder / f"{source.stem}_{name}_2.json", source, "")
    save(path, part, source=source)
    if not oriorder:
        return
    full = original_order(part, objects_of(content, "categories", where=where), where=where)
    path = output_path(None, path, "_oriorder")
    save(path, full, source=source)
    if frequencies:
        path = output_path(None, path, "_cat_info")
        counted = count_categories(full, where=where)
        write_annotations(path, counted)
        say_written(path, f"{len(counted)} categories")
