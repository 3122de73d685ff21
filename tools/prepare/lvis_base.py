"""LVIS-base: leave out the annotations of rare classes; images and classes stay.

    python tools/prepare_data.py lvis-base --ann datasets/lvis/lvis_v1_train.json

The output is what dataset lvis_v1_train_norare reads (866 classes with boxes).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detic_ext.data.preparation.lvis_base import without_rare

from .files import output_path, read_annotations, registered_json, save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--ann", type=Path, metavar="FILE", help="default: lvis_v1_train's")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: <ann>_norare.json")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    source = args.ann or registered_json("lvis_v1_train")
    output = output_path(args.output, source, "_norare")
    save(output, without_rare(read_annotations(source), where=str(source)), source=source)
    return 0
