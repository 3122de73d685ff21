"""Objects365 v2 with the corrected class names that the published text features have.

    python tools/prepare_data.py o365-names \\
        --ann datasets/objects365/annotations/zhiyuan_objv2_val.json

The output is what dataset objects365_v2_val reads; for training, o365-missing comes after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.objects365 import fix_names, read_name_table

from .files import output_path, read_annotations, save
from .options import add_ann


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_ann(parser, "_fixname")
    parser.add_argument(
        "--names", type=Path, metavar="CSV", help="lines 'id,old,new'; default: the authors' 13"
    )


def run(args: argparse.Namespace) -> int:
    """Do it."""
    output = output_path(args.output, args.ann, "_fixname")
    table = read_name_table(args.names) if args.names else None
    content, changed = fix_names(read_annotations(args.ann), table, where=str(args.ann))
    for line in changed:
        print(f"category {line}")
    save(output, content, source=args.ann)
    return 0
