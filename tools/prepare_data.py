"""Prepare and inspect data: annotation files, class lists, text features (docs/prepare_data.md).

python tools/prepare_data.py lvis-base --ann datasets/lvis/lvis_v1_train.json
python tools/prepare_data.py COMMAND --help
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Protocol, cast

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from ext_common.errors import ExtError
from ext_common.images import printable

COMMANDS = {
    "cat-info": "how many images and objects each class has (frequency file)",
    "cc-tags": "image labels from the captions of Conceptual Captions",
    "cc3m-list": "Conceptual Captions: download list, and records of what is there",
    "check": "check datasets before training, and repair annotation files",
    "coco-caption-tags": "image labels from COCO captions",
    "coco-subset": "a seeded share of COCO's images (mini-COCO)",
    "concept-features": "CLIP features of concepts over 81 prompts (RegionCLIP)",
    "concepts": "the nouns of captions and how often each is used (RegionCLIP)",
    "draw-results": "pictures with the boxes of a results file (RegionCLIP)",
    "embeddings": "text features of a class list",
    "folders": "image labels from a folder per class",
    "imagenet-21k": "image labels from ImageNet-21k in tar archives",
    "imagenet-lvis": "image labels from the ImageNet synsets that are LVIS classes",
    "lvis-base": "LVIS without the annotations of rare classes",
    "lvis-coco": "LVIS with the COCO boxes that it lacks",
    "merge-21k": "one vocabulary of LVIS and ImageNet-21k",
    "o365-missing": "Objects365 without the images that are not on the disk",
    "o365-names": "Objects365 with corrected class names",
    "ovcoco-oriorder": "an OV-COCO file under COCO's 80 classes",
    "ovcoco-split": "the base and novel files of OV-COCO",
    "proposals": "regions of images for pretraining (RegionCLIP)",
    "region-features": "CLIP features of the regions of pictures (RegionCLIP)",
    "regionclip-splits": "the open-vocabulary files of COCO and LVIS (RegionCLIP)",
    "soco-neighbours": "objects that a pretraining of SoCo finds alike, as a picture",
    "soco-proposals": "object proposals for SoCo: selective search and other sources",
    "soco-views": "views of a pretraining of SoCo with their boxes, as a picture",
    "tar-index": "index tar archives and check them",
}
"""What there is: a module of ``tools/prepare`` each, with ``_`` for ``-``."""


class Command(Protocol):
    """What such a module has. Its docstring's first line says what it does, the rest how."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code. ExtError and OSError are reported by the caller."""


def load_command(name: str) -> Command:
    """The module of a command; only the chosen one is imported."""
    package = f"{__package__}.prepare" if __package__ else "prepare"
    return cast(Command, importlib.import_module(f"{package}.{name.replace('-', '_')}"))


def overview() -> str:
    """The list of commands for ``--help``."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join([(__doc__ or "").strip(), "", "commands:", *lines])


def parse_arguments(words: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The chosen command and its options; wrong usage ends the program with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        usage="%(prog)s COMMAND [options]",
        description=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see above")
    command = load_command(parser.parse_args(words[:1]).command)
    own = argparse.ArgumentParser(
        prog=f"prepare_data.py {words[0]}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(own)
    own.add_argument("--debug", action="store_true", help="show where an error came from")
    return command, own.parse_args(words[1:])


def main(words: Sequence[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 done; 1 error, explained in the last line of stderr; 2 wrong usage; 130 interrupted.
    """
    command, args = parse_arguments(sys.argv[1:] if words is None else words)
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return command.run(args)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except (ExtError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        return fail(str(error), 1)
    except Exception as error:  # whatever it is, the last line says it
        traceback.print_exc()
        return fail(f"{type(error).__name__}: {error}", 1)


def fail(what: str, code: int) -> int:
    """Print the final line."""
    sys.stdout.flush()
    line = " ".join(printable(what.replace("\n", " ")).split())
    print(f"prepare_data: error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
