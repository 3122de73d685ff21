"""ImageNet-LVIS: image labels from the folders of the ImageNet synsets that are LVIS classes.

    python tools/prepare_data.py imagenet-lvis --wnids datasets/imagenet/imagenet_lvis_wnid.txt \\
        --synsets wordnet/dict --unpack datasets/imagenet/ImageNet-21k

The output is what dataset imagenet_lvis_v1 reads. With --unpack the synset archives are unpacked
first, those that have no folder yet; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.builtin_categories import lvis_categories
from detic_ext.data.preparation.imagenet_lvis import list_images, read_wnids, unpack_synsets
from detic_ext.data.preparation.synset_table import read_synsets
from ext_common.data.annotation_checks import first_ten

from .files import progress_bar, registered_images, registered_json, save
from .options import add_bad_files, add_categories, add_synsets, categories_or


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--wnids", type=Path, required=True, metavar="FILE", help="the synsets, one id a line"
    )
    add_synsets(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: imagenet_lvis_v1's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: imagenet_lvis_v1's")
    parser.add_argument("--unpack", type=Path, metavar="DIR", help="folder of WNID.tar archives")
    add_categories(parser, "LVIS v1")
    add_bad_files(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    root = args.images or registered_images("imagenet_lvis_v1")
    output = args.output or registered_json("imagenet_lvis_v1")
    wnids, synsets = read_wnids(args.wnids), read_synsets(args.synsets)
    categories = categories_or(args.categories, lvis_categories)
    if args.unpack:
        with progress_bar("unpacking", "synset") as progress:
            unpack_synsets(args.unpack, wnids, root, progress=progress)
    with progress_bar("reading sizes", "image") as progress:
        content = list_images(
            root, wnids, synsets, categories, bad_files=args.bad_files, progress=progress
        )
    missing = [wnid for wnid in wnids if not (root / wnid).is_dir()]
    if missing:
        print(f"{len(missing):,} of {len(wnids):,} synsets are missing: {first_ten(missing)}")
    save(output, content, source=root)
    return 0
