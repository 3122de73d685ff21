"""Concepts of captions: their nouns and how often each is used.

    python tools/prepare_data.py concepts --captions datasets/coco/annotations/captions_train2017.json \\
        --output datasets/metadata/coco_nouns.txt

Captions may be COCO's JSON, CC3M's TSV (caption, URL), text files of image-text pairs, or plain text
with one caption per line; several files are counted together. The output has one "name,count" per
line, the most frequent first. Needs the package textblob, no download.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ext_common.errors import DatasetError
from regionclip_ext.concepts.caption_files import read_captions
from regionclip_ext.concepts.concept_list import names_of, read_concepts, write_concepts
from regionclip_ext.concepts.counting import PUBLISHED_FREQUENCY, STOP_LIST, count_nouns
from regionclip_ext.concepts.nouns import build_tagger

from .files import say_written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--captions", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="name,count")
    parser.add_argument(
        "--frequency",
        type=int,
        default=PUBLISHED_FREQUENCY,
        metavar="N",
        help=f"leave out nouns used less often; default: {PUBLISHED_FREQUENCY}, as published",
    )
    parser.add_argument(
        "--stop-list", type=Path, metavar="FILE", help="nouns to leave out, instead of our own list"
    )
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE", help="more nouns to leave out, such as class names"
    )
    parser.add_argument("--compounds", action="store_true", help='"fire hydrant" beside "hydrant"')


def run(args: argparse.Namespace) -> int:
    """Do it."""
    stop = (
        set(STOP_LIST)
        if args.stop_list is None
        else {name.lower() for name in names_of(read_concepts(args.stop_list))}
    )
    if args.exclude:
        stop |= {name.lower() for name in names_of(read_concepts(args.exclude))}
    tagger = build_tagger()
    counts = count_nouns(_captions(args.captions), tagger, compounds=args.compounds)
    concepts = counts.concepts(frequency=args.frequency, stop=stop)
    if not concepts:
        raise DatasetError(
            f"none of {len(counts.singular) + len(counts.plural)} nouns of {counts.captions} "
            f"captions is used {args.frequency} times",
            fix="lower --frequency",
        )
    write_concepts(args.output, concepts)
    say_written(args.output, f"{len(concepts):,} concepts of {counts.captions:,} captions")
    return 0


def _captions(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        yield from tqdm(read_captions(path), desc=path.name, unit="caption", mininterval=0.5)
