"""LVIS+COCO: LVIS images with the COCO boxes that LVIS does not have.

    python tools/prepare_data.py lvis-coco --lvis datasets/lvis/lvis_v1_train.json \\
        --coco datasets/coco/annotations/instances_train2017.json

The output is what dataset lvis_v1_train+coco reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.lvis_coco import merge_coco

from .files import output_path, progress_bar, read_annotations, registered_json, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--lvis", type=Path, metavar="FILE", help="default: lvis_v1_train's")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="default: coco_2017_train's")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: <lvis>+coco_mask.json"
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    lvis = args.lvis or registered_json("lvis_v1_train")
    coco = args.coco or registered_json("coco_2017_train")
    output = output_path(args.output, lvis, "+coco_mask")
    contents = read_annotations(lvis), read_annotations(coco)
    with progress_bar("merging", "image") as progress:
        merged = merge_coco(*contents, where=str(lvis), coco_where=str(coco), progress=progress)
    save(output, merged, source=lvis)
    return 0
