"""Text features of a class list, as the authors made them: a .npy or .npz file.

    python tools/prepare_data.py embeddings --ann datasets/lvis/lvis_v1_val.json \\
        --output datasets/metadata/lvis_v1_clip_a+cname.npy --weights ViT-B-32.pt
    python tools/prepare_data.py embeddings --names "cat, remote control" --output mine.npz --model hash

Rows are in order of category ids, not normalised. A .npy file holds the rows alone and gets a .txt
file with the names beside it; a .npz file holds rows, names, texts and what made them.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np

from detic_ext.data.preparation.class_embeddings import (
    PROMPTS,
    TextOptions,
    embed_categories,
    with_wordnet_synonyms,
)
from detic_ext.data.preparation.synset_table import read_synsets
from ext_common.atomic_file import write_bytes
from ext_common.data.annotation_checks import contiguous_ids
from ext_common.data.json_files import read_categories
from ext_common.errors import ConfigError
from ext_common.text_encoder import build_text_encoder
from ext_common.vocabulary import Vocabulary

from .files import say_written
from .options import add_text_encoder, text_encoder_node


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument("--ann", type=Path, metavar="FILE", help="file with categories")
    classes.add_argument(
        "--names", metavar="NAMES|FILE|NAME", help='"cat, dog", a file of names, or a dataset'
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".npy or .npz")
    parser.add_argument("--prompt", choices=PROMPTS, default="a", help='default: a ("a X")')
    parser.add_argument("--fix-space", action="store_true", help="blanks for underscores in names")
    parser.add_argument("--use-underscore", action="store_true", help="underscores for blanks")
    parser.add_argument(
        "--drop-parentheses", action="store_true", help="names without what is in parentheses"
    )
    parser.add_argument("--avg-synonyms", action="store_true", help="mean over all synonyms")
    parser.add_argument(
        "--use-wn-name",
        type=Path,
        metavar="FILE|DIR",
        help="with --avg-synonyms: WordNet's words as synonyms (docs/prepare_data.md)",
    )
    parser.add_argument("--float16", action="store_true", help=".npy only; as the published files")
    add_text_encoder(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.output.suffix not in (".npy", ".npz"):
        raise ConfigError(
            f"cannot write {args.output.suffix or 'a file without suffix'}",
            where=str(args.output),
            fix="use .npy or .npz",
        )
    options = TextOptions(
        prompt=args.prompt,
        fix_space=args.fix_space,
        use_underscore=args.use_underscore,
        drop_parentheses=args.drop_parentheses,
        avg_synonyms=args.avg_synonyms,
    )
    categories, where = _categories(args)
    node = text_encoder_node(args)
    encoder = build_text_encoder(node, args.device)
    vocabulary = embed_categories(categories, options, encoder, node.CACHE_DIR, where=where)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _write(args.output, vocabulary, half=args.float16)
    shape = f"[{len(vocabulary)}, {encoder.dim}]"
    say_written(args.output, f"{shape} by {encoder.encoder_id}")
    return 0


def _categories(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    if args.ann:
        categories, where = read_categories(args.ann), str(args.ann)
        contiguous_ids(categories, where=where)
    else:
        names = Vocabulary.parse(args.names).names
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        where = "--names"
    if args.use_wn_name:
        categories = with_wordnet_synonyms(categories, read_synsets(args.use_wn_name))
    return categories, where


def _write(path: Path, vocabulary: Vocabulary, *, half: bool) -> None:
    emb_CD = vocabulary.embeddings_CD
    assert emb_CD is not None
    if path.suffix == ".npz":
        vocabulary.save(path)
        return
    stream = io.BytesIO()
    np.save(stream, emb_CD.numpy().astype(np.float16 if half else np.float32))
    write_bytes(path, stream.getvalue())
    names = "".join(f"{name}\n" for name in vocabulary.names)
    write_bytes(path.with_suffix(".txt"), names.encode("utf-8"))
