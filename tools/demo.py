"""Detect objects in pictures, videos and camera streams (docs/demo.md).

    python tools/demo.py --config-file configs/demo/Detic_demo.yaml --input photos --output found \
        --vocabulary "cat, remote control" --opts MODEL.WEIGHTS model.pth
    ... --video-input street.mp4 --output street_found.mp4
    ... --webcam 0
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence

from ext_common.errors import ExtError
from ext_common.images import printable

if __package__:  # imported as tools.demo
    from .demo_parts.command_line import build_parser, check
    from .demo_parts.frames import run_frames
    from .demo_parts.pictures import run_pictures
else:  # run as a script: its own folder is on sys.path
    from demo_parts.command_line import build_parser, check
    from demo_parts.frames import run_frames
    from demo_parts.pictures import run_pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 if at least one picture was looked at; 1 after an error, whose last line says what.
    """
    arguments = build_parser(__doc__).parse_args(argv)
    # detectron2's own call; nothing that a user of this tool could change
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        print(run(arguments))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is, the last line says it
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


def describe(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(printable(str(error).replace("\n", " ")).split())
    if isinstance(error, ExtError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def run(arguments: argparse.Namespace) -> str:
    """Do what the command line asks for; returns the closing sentence, after any table.

    Raises:
        ExtError: see the kinds in ext_common.errors.
    """
    formats = check(arguments)
    if arguments.input:
        return run_pictures(arguments, formats)
    return run_frames(arguments, formats)


if __name__ == "__main__":
    sys.exit(main())
