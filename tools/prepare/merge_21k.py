"""One vocabulary of LVIS and ImageNet-21k, and both annotation files under it.

    python tools/prepare_data.py merge-21k --lvis datasets/lvis/lvis_v1_train.json \\
        --imagenet datasets/imagenet/annotations/imagenet-22k_image_info.json \\
        --save-categories datasets/metadata/lvis-22k_categories.json

LVIS's classes come first. The outputs lie beside the inputs; they are what the datasets
lvis_v1_train_22k and imagenet_lvis-22k read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.annotation_file import write_annotations
from detic_ext.data.preparation.content_checks import objects_of
from detic_ext.data.preparation.merged_vocabulary import merge_vocabularies
from ext_common.data.json_files import read_categories

from .files import (
    images_of,
    output_path,
    progress_bar,
    read_annotations,
    registered_json,
    save,
    save_unchecked,
    say_written,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--lvis", type=Path, metavar="FILE", help="default: lvis_v1_train's")
    parser.add_argument(
        "--imagenet", type=Path, required=True, metavar="FILE", help="made by imagenet-21k"
    )
    parser.add_argument("--mark", default="lvis-22k", help="at the end of the outputs' names")
    parser.add_argument("--save-categories", type=Path, metavar="FILE", help="the vocabulary alone")
    parser.add_argument("--not-save-lvis", action="store_true")
    parser.add_argument("--not-save-imagenet", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    lvis_file = args.lvis or registered_json("lvis_v1_train")
    lvis_where, where = str(lvis_file), str(args.imagenet)
    lvis = read_annotations(lvis_file)
    vocabulary = merge_vocabularies(
        objects_of(lvis, "categories", where=lvis_where),
        read_categories(args.imagenet),
        where=lvis_where,
        second_where=where,
    )
    categories = list(vocabulary.categories)
    print(f"{len(categories):,} classes, {len(categories) - len(lvis['categories']):,} of them new")
    if args.save_categories:
        write_annotations(args.save_categories, {"categories": categories})
        say_written(args.save_categories, f"{len(categories):,} categories")
    if not args.not_save_lvis:
        output = output_path(None, lvis_file, f"_{args.mark}")
        save(output, {**lvis, "categories": categories}, source=lvis_file)
    if not args.not_save_imagenet:
        output = output_path(None, args.imagenet, f"_{args.mark}")
        with progress_bar("relabelling", "B") as progress:
            images = vocabulary.relabelled(images_of(args.imagenet, progress), where=where)
            content = {"images": images, "annotations": [], "categories": categories}
            save_unchecked(output, content)
    return 0
