#!/usr/bin/env python
"""Tables of the frozen-backbone ablations (docs/frozen_backbone.md).

python tools/frozen_tables.py parameters
python tools/frozen_tables.py parameters --trunk R50
python tools/frozen_tables.py results output/finetuned output/frozen --annotations train.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from ext_common.errors import DatasetError, ExtError
from ext_common.packages import register_all
from ext_common.run_results import RESULTS_FILE
from frozen_backbone_ext.ablation_tables import (
    class_gain_table,
    object_counts,
    parameter_table,
    size_table,
)

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "frozen_backbone"


def build_parser() -> argparse.ArgumentParser:
    """Two commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    parameters = commands.add_parser("parameters", help="sizes and trained shares of detectors")
    parameters.add_argument("--trunk", default="RS101", choices=("RS101", "R50", "R101", "B7"))
    results = commands.add_parser("results", help="AP by size, and gains over the first run")
    results.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a run")
    results.add_argument("--task", default="bbox", choices=("bbox", "segm"))
    results.add_argument(
        "--annotations", type=Path, metavar="FILE", help="of the training: gain by class frequency"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; 1 with one line on stderr where they cannot be made."""
    args = build_parser().parse_args(words)
    try:
        if args.command == "parameters":
            register_all()
            print(parameter_table(CONFIGS, args.trunk))
        else:
            _print_results(args)
    except ExtError as error:
        print(f"frozen_tables: error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_results(args: argparse.Namespace) -> None:
    runs = {str(folder): _results(folder) for folder in args.runs}
    print(size_table(runs, task=args.task))
    if args.annotations is None:
        return
    counts = object_counts(_read(args.annotations))
    first, *others = runs
    for other in others:
        print(f"\n{other} over {first}:")
        print(class_gain_table(runs[first][args.task], runs[other][args.task], counts))


def _results(folder: Path) -> dict[str, Mapping[str, float]]:
    found: dict[str, Any] = _read(folder / RESULTS_FILE)
    if len(found) == 1 and all(isinstance(v, dict) for v in next(iter(found.values())).values()):
        found = next(iter(found.values()))  # of the only dataset
    return {
        task: {name: math.nan if v is None else v for name, v in metrics.items()}
        for task, metrics in found.items()
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot be read: {error}", where=str(path)) from error
    return content


if __name__ == "__main__":
    sys.exit(main())
