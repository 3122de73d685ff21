"""Objects365 v2 without the images that are not on the disk.

    python tools/prepare_data.py o365-missing --images datasets/objects365/train \\
        --ann datasets/objects365/annotations/zhiyuan_objv2_train_fixname.json

The output is what dataset objects365_v2_train reads. Files are found also where folders in front of
their recorded names are missing; the names are corrected then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.objects365 import only_present

from .files import output_path, progress_bar, read_annotations, registered_images, save
from .options import add_ann


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_fixmiss")
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: objects365_v2_train's")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    output = output_path(args.output, args.ann, "_fixmiss")
    root = args.images or registered_images("objects365_v2_train")
    content = read_annotations(args.ann)
    with progress_bar("looking for images", "image") as progress:
        present = only_present(content, root, where=str(args.ann), progress=progress)
    missing = len(content["images"]) - len(present["images"])
    print(f"{missing:,} of {len(content['images']):,} images are missing in {root}")
    save(output, present, source=args.ann)
    return 0
