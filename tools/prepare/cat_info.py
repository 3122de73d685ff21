"""Frequency file: the categories with the number of images and objects of each.

    python tools/prepare_data.py cat-info --ann datasets/lvis/lvis_v1_train.json
    python tools/prepare_data.py cat-info --ann mine.json --add-freq

The output is what MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH names (federated loss, ignored zero classes).
"""

from __future__ import annotations

import argparse

from detic_ext.data.preparation.annotation_file import write_annotations
from detic_ext.data.preparation.category_counts import count_categories, with_frequency

from .files import output_path, read_annotations, say_written
from .options import add_ann


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_cat_info")
    parser.add_argument(
        "--add-freq", action="store_true", help="set 'frequency' (r, c, f) from the image counts"
    )
    parser.add_argument("--r-thresh", type=int, default=10, metavar="N", help="rare: fewer images")
    parser.add_argument("--c-thresh", type=int, default=100, metavar="N", help="common: fewer")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    output = output_path(args.output, args.ann, "_cat_info")
    counted = count_categories(read_annotations(args.ann), where=str(args.ann))
    if args.add_freq:
        counted = with_frequency(counted, rare_below=args.r_thresh, common_below=args.c_thresh)
    write_annotations(output, counted)
    empty = sum(category["image_count"] == 0 for category in counted)
    say_written(output, f"{len(counted):,} categories, {empty:,} without images")
    return 0
