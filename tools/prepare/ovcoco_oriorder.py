"""An OV-COCO file under COCO's full class list, so that one 80-row classifier serves all splits.

    python tools/prepare_data.py ovcoco-oriorder \\
        --ann datasets/coco/zero-shot/instances_train2017_seen_2.json

The outputs are what datasets coco_zeroshot_train_oriorder and coco_generalized_zeroshot_val read;
ovcoco-split makes them too.
"""

from __future__ import annotations

import argparse

from detic_ext.data.preparation.builtin_categories import coco_categories
from detic_ext.data.preparation.ov_coco import original_order

from .files import output_path, read_annotations, save
from .options import add_ann, add_categories, categories_or


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_oriorder")
    add_categories(parser, "COCO's 80")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    output = output_path(args.output, args.ann, "_oriorder")
    categories = categories_or(args.categories, coco_categories)
    content = original_order(read_annotations(args.ann), categories, where=str(args.ann))
    save(output, content, source=args.ann)
    return 0
