"""Conceptual Captions: what is to be downloaded, and the records of the images that are there.

    python tools/prepare_data.py cc3m-list --ann datasets/cc3m/Train_GCC-training.tsv \\
        --images datasets/cc3m/training --output datasets/cc3m/train_image_info.json
    aria2c --input-file datasets/cc3m/train_image_info.urls.txt --dir datasets/cc3m/training
    (the first line again)

Nothing is downloaded here. Line N of the list (from 1) is image N.jpg. The second run lists what is
still missing and makes the annotation file; an interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.builtin_categories import lvis_categories
from detic_ext.data.preparation.cc3m import download_list, present_images, read_rows
from detic_ext.data.preparation.size_journal import SizeJournal
from ext_common.atomic_file import write_bytes
from ext_common.data.annotation_checks import first_ten

from .files import output_path, progress_bar, registered_images, registered_json, save, say_written
from .options import add_categories, categories_or


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--ann", type=Path, required=True, metavar="TSV", help="lines 'caption<TAB>url'"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: cc3m_v1_train's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: cc3m_v1_train's")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="download list; default: <output>.urls.txt"
    )
    add_categories(parser, "LVIS v1")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    folder = args.images or registered_images("cc3m_v1_train")
    output = output_path(args.output or registered_json("cc3m_v1_train"), args.ann, "")
    urls = args.list or output.with_suffix(".urls.txt")
    categories = categories_or(args.categories, lvis_categories)
    rows = read_rows(args.ann)
    journal = SizeJournal(output.with_suffix(".sizes.part"))
    with journal, progress_bar("reading sizes", "image") as progress:
        found = present_images(rows, folder, journal, progress=progress)
    urls.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(urls, download_list(found.missing).encode("utf-8"))
    say_written(urls, f"{len(found.missing):,} of {len(rows):,} images to download")
    if found.bad:
        print(f"{len(found.bad):,} files are no images and left out: {first_ten(found.bad)}")
    if not found.images:
        print(f"no image is in {folder} yet: no annotation file")
        return 0
    content = {"images": found.images, "annotations": [], "categories": categories}
    save(output, content, source=args.ann)
    return 0
