"""Image labels from captions: a class is a label where one of its names is in the text.

    python tools/prepare_data.py cc-tags --ann datasets/cc3m/train_image_info.json
    python tools/prepare_data.py cc-tags --ann datasets/cc3m/train_image_info.json --coco \\
        --output datasets/cc3m/coco_train_image_info_tags.json

The outputs are what datasets cc3m_v1_train_tags and cc3m_coco_train_tags read.
"""

from __future__ import annotations

import argparse

from detic_ext.data.preparation.builtin_categories import coco_categories, lvis_categories
from detic_ext.data.preparation.caption_tags import tag_images
from detic_ext.data.preparation.coco_captions import with_synonyms
from ext_common.data.annotation_checks import contiguous_ids

from .files import images_of, output_path, progress_bar, save_unchecked
from .options import add_ann, add_categories, categories_or


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_tags", "made by cc3m-list")
    add_categories(parser, "LVIS v1")
    parser.add_argument("--coco", action="store_true", help="COCO's 80 classes, LVIS's synonyms")
    parser.add_argument(
        "--allcaps", action="store_true", help="search all captions; default: the first of each"
    )
    parser.add_argument("--keep-images", action="store_true", help="keep images without labels")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    suffix = f"_tags{'_allcaps' if args.allcaps else ''}{'_full' if args.keep_images else ''}"
    output = output_path(args.output, args.ann, suffix)
    default = coco_categories if args.coco else lvis_categories
    categories = categories_or(args.categories, default)
    contiguous_ids(categories, where=str(args.categories))
    with progress_bar("tagging", "B") as progress:
        tagged = tag_images(
            images_of(args.ann, progress),
            with_synonyms(categories) if args.coco else categories,
            all_captions=args.allcaps,
            keep_untagged=args.keep_images,
        )
        content = {"images": tagged, "annotations": [], "categories": categories}
        save_unchecked(output, content)
    return 0
