"""Image labels from a tree with one folder per class.

    python tools/prepare_data.py folders --images photos --output photos.json
    python tools/prepare_data.py folders --images photos --output photos.json \\
        --categories boxes.json --map folders.txt --unknown-folders skip

Without --categories every folder is a class. With it folders are matched by name, synset or synonym,
or as the map says (lines 'FOLDER CLASS').
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ext_common.data.class_folders import FolderOptions, import_class_folders, read_folder_map
from ext_common.data.json_files import read_categories

from .files import progress_bar, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--categories", type=Path, metavar="FILE", help="annotation file whose categories to use"
    )
    parser.add_argument("--map", type=Path, metavar="FILE", help="lines 'FOLDER CLASS'")
    parser.add_argument("--unknown-folders", choices=("error", "skip"), default="error")
    parser.add_argument("--bad-files", choices=("error", "skip"), default="error")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    options = FolderOptions(
        folder_map=read_folder_map(args.map) if args.map else {},
        unknown_folders=args.unknown_folders,
        bad_files=args.bad_files,
    )
    classes = read_categories(args.categories) if args.categories else None
    with progress_bar("reading sizes", "image") as progress:
        content = import_class_folders(args.images, classes, options, progress=progress)
    save(args.output, content, source=args.images)
    return 0
