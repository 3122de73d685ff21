"""The command line of tools/demo.py."""

from __future__ import annotations

import argparse

from ext_common.errors import ConfigError

from .vocabulary import BUILT_IN

FORMATS = ("image", "coco", "csv")


def build_parser(description: str) -> argparse.ArgumentParser:
    """All options; the published spellings are accepted too."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's YAML")
    _add_sources(parser)
    parser.add_argument(
        "--output",
        default="",
        metavar="DIR|FILE",
        help="a folder, made if it is missing; for a video or camera also a video file. "
        "Without it, videos and cameras are shown in a window",
    )
    _add_model(parser)
    parser.add_argument(
        "--format",
        default="",
        help="some of image,coco,csv (default: image,coco; of a video or camera: image)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--timings", action="store_true", help="print where the time went")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config pairs"
    )
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="FILE|DIR|GLOB",
        help="pictures; those of a folder by their ending; quote a pattern (** = subfolders)",
    )
    source.add_argument("--video-input", default="", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", default="", metavar="INDEX|screen|URL", help="a camera: 0 is the first"
    )
    parser.add_argument(
        "--max-frames", type=int, default=None, metavar="N", help="of a video or camera"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vocabulary",
        default="",
        metavar="NAMES|FILE|NAME",
        help=f'what to look for: "cat, dog", one of {", ".join(BUILT_IN)}, a file of names or '
        "embeddings, or a dataset; default: the classes of the configuration",
    )
    parser.add_argument(
        "--custom-vocabulary",
        "--custom_vocabulary",
        default="",
        metavar="NAMES",
        help="the names of --vocabulary custom",
    )
    parser.add_argument(
        "--pred-all-class",
        "--pred_all_class",
        action="store_true",
        help="a region may be of several classes; default: of its best one",
    )
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE")
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--device", default=None, help="cpu, cuda, cuda:1; default: MODEL.DEVICE")
    device.add_argument(
        "--cpu", dest="device", action="store_const", const="cpu", help="as --device cpu"
    )


def check(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Find mistakes before anything is loaded; returns the output formats.

    Raises:
        ConfigError: a value out of range, an unknown format, or no output.
    """
    if not 0 <= arguments.confidence_threshold <= 1 or arguments.batch_size < 1:
        raise ConfigError(
            f"--confidence-threshold {arguments.confidence_threshold}, "
            f"--batch-size {arguments.batch_size}",
            fix="a score from 0 to 1, and at least 1 picture",
        )
    if arguments.max_frames is not None and (arguments.max_frames < 1 or arguments.input):
        raise ConfigError(
            f"--max-frames {arguments.max_frames}", fix="at least 1, with a video or camera"
        )
    formats = parse_formats(arguments.format or ("image,coco" if arguments.input else "image"))
    if not arguments.output and (arguments.input or formats != ("image",)):
        raise ConfigError("no output", where="--output", fix="name a folder")
    return formats


def parse_formats(text: str) -> tuple[str, ...]:
    """The output formats of ``image,coco,csv``."""
    formats = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in formats if part not in FORMATS]
    if unknown or not formats:
        raise ConfigError(
            f"unknown format {', '.join(unknown) or repr(text)}",
            where="--format",
            fix=f"some of {','.join(FORMATS)}",
        )
    return formats
