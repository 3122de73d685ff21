"""Embeddings of concepts or classes: CLIP's text features over 81 prompts.

    python tools/prepare_data.py concept-features --concepts datasets/metadata/coco_nouns.txt \\
        --output models/coco_nouns_emb.pth --model RN50-quickgelu --weights models/RN50.pt
    python tools/prepare_data.py concept-features --names "cat, remote control" --output mine.npz

A .pth file is the authors' (a bare tensor, rows in the order of the concepts, not normalised) with
the names in a .txt file beside it; a .npz file holds both. Computed features are cached: a stopped
run goes on, a second one takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ext_common.data.json_files import read_categories
from ext_common.text_encoder import build_text_encoder
from ext_common.vocabulary_prompts import lvis_name
from regionclip_ext.concepts.concept_list import names_of, read_concepts
from regionclip_ext.concepts.embedding import MEANS, embed_concepts
from regionclip_ext.concepts.embedding_files import write_embeddings
from regionclip_ext.concepts.templates import imagenet_templates

from .files import progress_bar, say_written
from .options import add_text_encoder, text_encoder_node

DEFAULT_CACHE = Path("~/.cache/regionclip_ext/text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--concepts", type=Path, metavar="FILE", help="name,count lines, or names")
    source.add_argument("--names", metavar="NAMES", help='"cat, dog"')
    source.add_argument(
        "--ann", type=Path, metavar="FILE", help="categories in order of their ids (COCO, LVIS)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".pth or .npz")
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='such as "a photo of a {}."; repeat for several; default: the published 81',
    )
    parser.add_argument("--mean", choices=MEANS, default="raw", help="default: raw, as published")
    add_text_encoder(parser, model="RN50-quickgelu", cache=str(DEFAULT_CACHE))


def run(args: argparse.Namespace) -> int:
    """Do it."""
    names = _names(args)
    templates = args.template or imagenet_templates()
    encoder = build_text_encoder(text_encoder_node(args), args.device)
    with progress_bar("embedding", "name") as progress:
        emb_CD = embed_concepts(
            names,
            encoder,
            templates,
            mean=args.mean,
            cache_dir=args.cache,
            progress=lambda done: progress(done, len(names)),
        )
    written = write_embeddings(args.output, names, emb_CD, encoder.encoder_id)
    shape = f"[{len(names)}, {encoder.dim}], {len(templates)} prompts each"
    say_written(written[0], f"{shape}, by {encoder.encoder_id}")
    return 0


def _names(args: argparse.Namespace) -> list[str]:
    if args.concepts:
        return names_of(read_concepts(args.concepts))
    if args.names:
        return [name.strip() for name in args.names.split(",") if name.strip()]
    categories = sorted(read_categories(args.ann), key=lambda category: category["id"])
    return [lvis_name(category["name"]) for category in categories]
