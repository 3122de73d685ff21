"""Options that several commands have, declared in one place."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ext_common.config import get_config
from ext_common.data.json_files import read_categories


def add_ann(parser: ArgumentParser, suffix: str, what: str = "annotation file") -> None:
    """``--ann`` and ``--output``, which defaults to ``<ann><suffix>.json``."""
    parser.add_argument("--ann", type=Path, required=True, metavar="FILE", help=what)
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: <ann>{suffix}.json")


def add_categories(parser: ArgumentParser, default: str) -> None:
    """``--categories``."""
    parser.add_argument(
        "--categories",
        type=Path,
        metavar="FILE",
        help=f"annotation file whose categories to use; default: {default}",
    )


def categories_or(
    path: Path | None, default: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The categories that ``--categories`` names."""
    return read_categories(path) if path else default()


def add_synsets(parser: ArgumentParser) -> None:
    """``--synsets``."""
    parser.add_argument(
        "--synsets",
        type=Path,
        required=True,
        metavar="FILE|DIR",
        help="table of synsets, or WordNet 3.0's folder 'dict' (docs/prepare_data.md)",
    )


def add_bad_files(parser: ArgumentParser) -> None:
    """``--bad-files``."""
    parser.add_argument(
        "--bad-files",
        choices=("error", "skip"),
        default="error",
        help="files that are no images; default: error",
    )


def add_text_encoder(
    parser: ArgumentParser, *, model: str | None = None, cache: str | None = None
) -> None:
    """``--model``, ``--weights``, ``--dim``, ``--allow-download``, ``--cache``, ``--device``.

    Args:
        parser: gets them.
        model: default instead of the configuration's.
        cache: the same for the folder of computed features.
    """
    parser.add_argument(
        "--model",
        default=model,
        metavar="NAME",
        help=f"an open_clip model, or hash; default: {model or 'MODEL.TEXT_ENCODER.NAME'}",
    )
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.TEXT_ENCODER.WEIGHTS")
    parser.add_argument("--dim", type=int, metavar="D", help="width of model 'hash'")
    parser.add_argument("--allow-download", action="store_true", help="fetch missing weights")
    parser.add_argument(
        "--cache",
        default=cache,
        metavar="DIR",
        help=f"default: {cache or 'MODEL.TEXT_ENCODER.CACHE_DIR'}",
    )
    parser.add_argument("--device", default="cpu", help="default: cpu")


def text_encoder_node(args: Namespace) -> Any:
    """The ``MODEL.TEXT_ENCODER`` block with what :func:`add_text_encoder` was given."""
    node = get_config().MODEL.TEXT_ENCODER
    given = {
        "NAME": args.model,
        "WEIGHTS": args.weights,
        "DIM": args.dim,
        "ALLOW_DOWNLOAD": args.allow_download or None,
        "CACHE_DIR": args.cache,
    }
    for key, value in given.items():
        if value is not None:
            node[key] = value
    return node
