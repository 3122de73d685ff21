"""Command line: ``python -m benchmarks CASE [--device cpu|cuda] [--json FILE] [--repeat N]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.discovery import all_cases, find_cases
from benchmarks.harness import run_variant
from benchmarks.report import Row, as_json, as_table, machine
from ext_common.errors import ExtError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("case", nargs="?", default="all", help="a name from --list, or all")
    parser.add_argument("--list", action="store_true", help="list the cases and their sizes")
    parser.add_argument("--variant", help="only this size (tiny: the one that tests use)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeat", type=int, default=30, help="timed calls (default 30)")
    parser.add_argument(
        "--warmup", type=int, default=3, help="calls before each block of ten (default 3)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--check", action="store_true", help="fail if a target is missed as well")
    return parser


def _list_cases() -> None:
    for case in all_cases().values():
        sizes = ", ".join(
            f"{v.name} (target {v.target:g}x)" if v.target else v.name for v in case.variants
        )
        print(f"{case.name:<14} {case.what}\n{'':<14} sizes: {sizes}")


def _measure(args: argparse.Namespace, device: torch.device) -> list[Row]:
    rows: list[Row] = []
    for case in find_cases(args.case):
        sizes = case.variants if args.variant is None else (*case.variants, case.tiny)
        for variant in sizes:
            if args.variant in (None, variant.name):
                rows += run_variant(
                    case,
                    variant,
                    device=device,
                    warmup=args.warmup,
                    repeat=args.repeat,
                    with_memory=not args.no_memory,
                )
    if not rows:
        raise ExtError(f"{args.case} has no size {args.variant!r}", fix="see --list")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 1 if an implementation differs from the naive one (or, with --check, is too slow)."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.repeat < 1 or args.warmup < 0:
        parser.error("--repeat is at least 1 and --warmup at least 0")
    if args.list:
        _list_cases()
        return 0
    torch.set_num_threads(1)  # two threads on a busy machine spin (docs/benchmarks.md)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch sees no CUDA device")
    try:
        rows = _measure(args, device)
    except ExtError as error:
        print(error, file=sys.stderr)
        return 2
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(as_table(rows))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(as_json(rows, device), indent=2) + "\n", encoding="utf-8")
    failed = not all(row.equal and (row.reached or not args.check) for row in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
