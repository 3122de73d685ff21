"""Options that several commands have, declared in one place."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
