"""Image labels from COCO captions: the captions of an image together, COCO's classes.

    python tools/prepare_data.py coco-caption-tags \\
        --ann datasets/coco/annotations/captions_train2017.json

The output is what dataset coco_caption_train_tags reads. The names that are looked for are those of
the LVIS class that each COCO class is.
"""

from __future__ import annotations

import argparse

from detic_ext.data.preparation.builtin_categories import coco_categories
from detic_ext.data.preparation.caption_tags import tag_images
from detic_ext.data.preparation.coco_captions import gather_captions, with_synonyms

from .files import output_path, progress_bar, read_annotations, save
from .options import add_ann, add_categories, categories_or


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_tags_allcaps", "COCO captions")
    add_categories(parser, "COCO's 80")
    parser.add_argument("--keep-images", action="store_true", help="keep images without labels")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    suffix = "_tags_allcaps_full" if args.keep_images else "_tags_allcaps"
    output = output_path(args.output, args.ann, suffix)
    categories = categories_or(args.categories, coco_categories)
    images = gather_captions(read_annotations(args.ann), where=str(args.ann))
    with progress_bar("tagging", "image") as progress:
        tagged = tag_images(
            images,
            with_synonyms(categories),
            all_captions=True,
            keep_untagged=args.keep_images,
            progress=lambda done: progress(done, len(images)),
        )
        content = {"images": list(tagged), "annotations": [], "categories": categories}
    save(output, content, source=args.ann)
    return 0
