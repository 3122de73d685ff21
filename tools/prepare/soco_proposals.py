"""Object proposals for SoCo, in one indexed file that loader workers map.

    python tools/prepare_data.py soco-proposals --images imagenet/train --output train.proposals
    python tools/prepare_data.py soco-proposals --images photos --output p --source opencv-fast
    python tools/prepare_data.py soco-proposals --images photos --output p1 --shard 1/2
    python tools/prepare_data.py soco-proposals --merge p1 p2 --output p

Sources: authors (their selective search; the published proposals), opencv-fast, opencv-quality,
opencv-single (its fastest), random, coco (--boxes FILE), authors-json (--boxes FILE), rpn (--config-file
with --opts MODEL.WEIGHTS). A run that was stopped goes on where it was. --export-json writes the
authors' form of a finished file.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from ext_common.config import load_config
from ext_common.config_digest import config_digest
from ext_common.data.annotation_checks import first_ten
from ext_common.data.unlabelled_images import ImageList, images_of_folder, images_of_tars
from ext_common.errors import ConfigError
from ext_common.images import printable
from ext_common.packages import register_all
from ext_common.tar_shards import TarDataset
from soco_ext.proposals.filtering import PUBLISHED_STRATEGY, BoxFilter
from soco_ext.proposals.finders import (
    AuthorsSearch,
    CocoFinder,
    Finder,
    OpenCVSearch,
    PublishedFinder,
    RandomFinder,
)
from soco_ext.proposals.generation import Request, Shard, find_proposals, journal_of
from soco_ext.proposals.inputs import content_digest, weights_digest
from soco_ext.proposals.opencv_search import MODES, opencv_module
from soco_ext.proposals.proposal_file import merge_files, open_proposals
from soco_ext.proposals.published_json import empty_list_of, write_published
from soco_ext.proposals.segmentation import SearchSettings, compiled_joining

from .files import progress_bar

SOURCES = (
    "authors",
    *(f"opencv-{mode}" for mode in MODES),
    "random",
    "coco",
    "authors-json",
    "rpn",
)

_RANGES = (
    ("--seed", 0, math.inf, "an integer of at least 0"),
    ("--most", 1, math.inf, "a number of boxes of at least 1"),
    ("--workers", 0, math.inf, "a number of processes of at least 0"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, metavar="DIR", help="folder, with its subfolders")
    what.add_argument("--tars", type=Path, metavar="DIR|FILE", help="archives, or a list of them")
    what.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="parts to join")
    what.add_argument("--export-json", type=Path, metavar="FILE", help="file to convert")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--source", choices=SOURCES, default="authors", help="default: authors")
    parser.add_argument(
        "--strategy",
        help=f"filter: none, ratioR, sizeAB, ratioRsizeABCD, with post for images that have none "
        f"left; default: {PUBLISHED_STRATEGY}, for coco and authors-json none",
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="for coco and authors-json")
    parser.add_argument("--scale", type=float, default=300.0, help="authors: default 300")
    parser.add_argument("--sigma", type=float, default=0.9, help="authors: default 0.9")
    parser.add_argument("--min-size", type=int, default=100, help="authors: default 100")
    parser.add_argument("--seed", type=int, default=0, help="random: default 0")
    parser.add_argument("--config-file", metavar="FILE", help="rpn: a detector")
    parser.add_argument("--most", type=int, metavar="N", help="rpn: boxes of the highest scores")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: all cores")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th image, from I")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished run")
    parser.add_argument("--bad-files", choices=("error", "skip"), default="error")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="rpn: KEY VALUE ...")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.merge:
        _say(args.output, merge_files(args.merge, args.output))
        return 0
    if args.export_json:
        listed = write_published(open_proposals(args.export_json), args.output)
        print(f"wrote {printable(args.output)} and {printable(listed)}")
        return 0
    _check_ranges(args)
    finder, settings = _finder(args)
    images, tars = _images(args)
    request = Request(
        images,
        finder,
        _strategy(args),
        tars,
        Shard.parse(args.shard),
        workers=_workers(args),
        find_here=_on_gpu(finder),
        skip_bad=args.bad_files == "skip",
        settings=settings,
    )
    if args.restart:
        journal_of(args.output).unlink(missing_ok=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar("finding proposals", "image") as progress:
        outcome = find_proposals(request, args.output, progress=progress)
    if outcome.resumed:
        print(f"{outcome.resumed:,} images were done before")
    if outcome.bad:
        print(f"{len(outcome.bad):,} images left out: {first_ten(outcome.bad)}")
    if isinstance(finder, CocoFinder):
        cut, dropped = finder.outside(open_proposals(args.output).items())
        if cut or dropped:
            print(f"boxes not wholly in the picture: {cut:,} clipped, {dropped:,} dropped")
    print(f"{outcome.boxes:,} boxes; {outcome.empty:,} images have none")
    _say(args.output, outcome.images)
    return 0


def _say(output: Path, images: int) -> None:
    size = output.stat().st_size
    print(f"wrote {printable(output)}: {images:,} images, {size:,} bytes")


def _images(args: argparse.Namespace) -> tuple[ImageList, TarDataset | None]:
    if args.tars:
        return images_of_tars(args.tars)
    return images_of_folder(args.images), None


def _finder(args: argparse.Namespace) -> tuple[Finder, dict[str, Any]]:
    """The source, and what the file should say about its settings."""
    if args.source == "authors":
        search = SearchSettings(args.scale, args.sigma, args.min_size)
        compiled_joining()  # before the workers start, so that there is one message
        return AuthorsSearch(search), {
            "scale": args.scale,
            "sigma": args.sigma,
            "min_size": args.min_size,
        }
    if args.source.startswith("opencv-"):
        opencv_module()  # before the workers start, so that there is one message
        return OpenCVSearch(args.source.removeprefix("opencv-")), {}
    if args.source == "random":
        return RandomFinder(args.seed), {"seed": args.seed}
    if args.source == "rpn":
        return _rpn(args)
    if args.boxes is None:
        raise ConfigError(
            "no file of boxes", where=f"--source {args.source}", fix="add --boxes FILE"
        )
    if args.source == "coco":
        finder: Finder = CocoFinder.read(args.boxes, in_tars=args.tars is not None)
        digest = content_digest(args.boxes)
    else:
        finder = PublishedFinder.read(args.boxes)
        digest = content_digest(args.boxes, empty_list_of(args.boxes))
    return finder, {"boxes": args.boxes.name, "boxes_digest": digest}


def _rpn(args: argparse.Namespace) -> tuple[Finder, dict[str, Any]]:
    from soco_ext.proposals.rpn_finder import RpnFinder

    if not args.config_file:
        raise ConfigError("no detector", where="--source rpn", fix="add --config-file FILE")
    register_all()
    cfg = load_config(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "no weights: the boxes would be random",
            where="MODEL.WEIGHTS",
            fix="add --opts MODEL.WEIGHTS FILE, or use --source random",
        )
    settings = {
        "config": Path(args.config_file).name,
        "config_digest": config_digest(cfg),
        "weights": Path(cfg.MODEL.WEIGHTS).name,
    }
    finder = RpnFinder.from_config(cfg, most=args.most)
    settings["weights_digest"] = weights_digest(cfg.MODEL.WEIGHTS)
    return finder, {**settings, "most": args.most}


def _check_ranges(args: argparse.Namespace) -> None:
    """Numbers that no source can use; some would be taken without a word."""
    for option, low, high, range_text in _RANGES:
        value = getattr(args, option.removeprefix("--").replace("-", "_"))
        if value is not None and not low <= value < high:
            raise ConfigError(f"{value}", where=option, fix=f"give {range_text}")


def _strategy(args: argparse.Namespace) -> BoxFilter:
    given = args.source in ("coco", "authors-json")
    return BoxFilter.parse(args.strategy or ("none" if given else PUBLISHED_STRATEGY))


def _workers(args: argparse.Namespace) -> int:
    """One worker is this process."""
    if args.workers == 1:
        return 0
    return args.workers if args.workers is not None else len(os.sched_getaffinity(0))


def _on_gpu(finder: Finder) -> bool:
    """Only a detector can be; its workers read ahead then."""
    model = getattr(finder, "model", None)
    return model is not None and model.device.type != "cpu"
