"""The part of the command line that experiments share."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ext_common.errors import ExtError

SizesT = TypeVar("SizesT")


@dataclass(frozen=True)
class Request(Generic[SizesT]):
    """What the command line asks for.

    Attributes:
        output: absolute folder.
        sizes: of the experiment.
        device: "cpu" or "cuda".
        seeds: to run.
        jobs: runs side by side; 0 = all in this process.
        opts: KEY VALUE pairs by the name of the part that they are for.
    """

    output: Path
    sizes: SizesT
    device: str
    seeds: Sequence[int]
    jobs: int
    opts: dict[str, tuple[str, ...]]


def read_request(
    words: Sequence[str] | None,
    description: str | None,
    sizes: tuple[SizesT, SizesT],
    parts: Sequence[str],
) -> Request[SizesT]:
    """Parse a command line.

    Args:
        words: it; None = the program's.
        description: of the experiment.
        sizes: usual ones, and those of ``--quick``, of one dataclass whose fields are counts.
        parts: each gets ``--PART-opts KEY VALUE ...``.

    Raises:
        SystemExit: a wrong command line, or a call for help.
    """
    usual: Any = sizes[0]
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, help="how many, default: 3")
    parser.add_argument("--first-seed", type=int, default=0, help="default: 0")
    parser.add_argument("--quick", action="store_true", help="two steps each: do the parts fit?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    jobs = min(2, os.cpu_count() or 1)
    side_by_side = f"side by side, one thread each (default {jobs}); 0 = all in this process"
    parser.add_argument("--jobs", type=int, default=jobs, help=side_by_side)
    for field in fields(usual):
        flag, value = f"--{field.name.replace('_', '-')}", getattr(usual, field.name)
        parser.add_argument(flag, type=int, help=f"default: {value}")
    for part in parts:
        parser.add_argument(f"--{part}-opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(words)
    if args.seeds < 1 or args.jobs < 0:
        parser.error("--seeds is 1 or more, --jobs 0 or more")
    given = {field.name: getattr(args, field.name) for field in fields(usual)}
    chosen: Any = sizes[1] if args.quick else usual
    return Request(
        output=args.output.absolute(),
        sizes=replace(
            chosen, **{name: value for name, value in given.items() if value is not None}
        ),
        device=args.device,
        seeds=range(args.first_seed, args.first_seed + (1 if args.quick else args.seeds)),
        jobs=0 if args.quick else args.jobs,
        opts={part: tuple(getattr(args, f"{part}_opts")) for part in parts},
    )


def run_and_print(work: Callable[[], str], output: Path) -> int:
    """Do the work and print its tables, where they are, and how long it took.

    Returns:
        0, or 1 if a step failed; its line on stderr names the log.
    """
    started = time.monotonic()
    try:
        tables = work()
    except (ExtError, OSError) as error:
        print(f"claims: {error}", file=sys.stderr)
        return 1
    print(f"\n{tables}\n\ntables and plots: {output}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return 0
