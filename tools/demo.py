"""Detect objects in pictures: drawn pictures, COCO JSON, CSV (docs/demo.md).

    python tools/demo.py --config-file configs/demo/Detic_demo.yaml --input photos --output found \
        --vocabulary "cat, remote control" --opts MODEL.WEIGHTS model.pth
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ext_common.atomic_file import replacing
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.drawing import contact_sheet, draw_detections
from ext_common.errors import ConfigError, ExtError, ImageError, WeightsError
from ext_common.images import (
    IMAGE_SUFFIXES,
    BadSamplePolicy,
    find_images,
    image_size,
    printable,
    read_image,
)
from ext_common.packages import register_all
from ext_common.predictor import Predictor, aspect_batches
from ext_common.results import Detections, write_coco, write_csv
from ext_common.vocabulary import Vocabulary

FORMATS = ("image", "coco", "csv")
SHEET, COCO, CSV = "contact_sheet.jpg", "detections.json", "detections.csv"
SHEET_MOST = 60
"""A contact sheet shows the first pictures only."""
_JPEG_SIDE = 65_500  # a little below what the format can hold


@dataclass(frozen=True)
class Input:
    """A picture to look at."""

    path: Path
    named: bool  # by the user itself: then it must be readable; found ones may be skipped
    output_name: str


@dataclass
class Outcome:
    """What the run has found so far."""

    results: dict[int, Detections] = field(default_factory=dict)  # by the input's place
    small: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # for the contact sheet
    first_error: str = ""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's YAML")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE|DIR|GLOB",
        help="pictures; those of a folder by their ending; quote a pattern (** = subfolders)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="made if it is missing")
    parser.add_argument(
        "--vocabulary",
        default="",
        metavar="NAMES|FILE|NAME",
        help='what to look for: "cat, dog", a file of names or embeddings, or a dataset; '
        "default: the classes of the configuration",
    )
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE")
    parser.add_argument(
        "--format", default="image,coco", help="some of image,coco,csv (default: image,coco)"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1; default: MODEL.DEVICE")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config pairs"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 if at least one picture was looked at; 1 after an error, whose last line says what.
    """
    arguments = build_parser().parse_args(argv)
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
    """Do what the command line asks for; returns the closing sentence.

    Raises:
        ExtError: see the kinds in ext_common.errors.
    """
    formats = parse_formats(arguments.format)
    if not 0 <= arguments.confidence_threshold <= 1 or arguments.batch_size < 1:
        raise ConfigError(
            f"--confidence-threshold {arguments.confidence_threshold}, "
            f"--batch-size {arguments.batch_size}",
            fix="a score from 0 to 1, and at least 1 picture",
        )
    inputs = collect_inputs(arguments.input)
    folder = prepare_folder(Path(arguments.output), inputs if "image" in formats else ())
    predictor = build_predictor(arguments)
    policy = BadSamplePolicy("skip", limit=1.0)
    outcome = detect_all(
        inputs, predictor, policy, arguments, folder if "image" in formats else None
    )
    results = [outcome.results[index] for index in sorted(outcome.results)]
    if not results:
        raise ImageError(
            f"none of the {len(inputs)} pictures can be read",
            fix=f"the first: {outcome.first_error}",
        )
    written = write_files(folder, formats, results, outcome, predictor.class_names)
    found = sum(len(result) for result in results)
    skipped = f", {policy.skipped} corrupt files skipped" if policy.skipped else ""
    return f"{len(results)} pictures, {found} detections{skipped}; in {printable(folder)}: {', '.join(written)}"


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


def collect_inputs(patterns: Sequence[str]) -> list[Input]:
    """Files, the images of folders, and what patterns match, each once, in this order.

    Raises:
        ImageError: nothing there, or nothing in it; or a named file that is no image.
    """
    named_of: dict[Path, bool] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found, named = find_images(path), False
            hint = (
                f"readable endings: {' '.join(sorted(IMAGE_SUFFIXES))}; for subfolders: '{path}/**'"
            )
        elif path.exists() or not glob.has_magic(pattern):
            image_size(path)  # before the model is built, which takes longer
            found, named, hint = [path], True, ""
        else:
            names = glob.glob(os.path.expanduser(pattern), recursive=True)
            found = [Path(name) for name in sorted(names) if is_image_file(Path(name))]
            named, hint = False, "check the pattern; quote it, so that the shell leaves it alone"
        if not found:
            raise ImageError("no image matches", where=printable(pattern), fix=hint)
        for entry in found:
            named_of[entry] = named_of.get(entry, False) or named
    taken = {SHEET}
    return [Input(path, named, _output_name(path, taken)) for path, named in named_of.items()]


def is_image_file(path: Path) -> bool:
    """Whether a file's ending is one of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _output_name(path: Path, taken: set[str]) -> str:
    """A name for the drawn picture that no other has; adds it to ``taken``."""
    stem = "".join(char if char.isprintable() else "_" for char in path.stem)
    stem = os.fsencode(stem)[:180].decode("utf-8", "ignore")  # room for what is added
    name, number = f"{stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.jpg"
    taken.add(name)
    return name


def prepare_folder(folder: Path, inputs: Sequence[Input]) -> Path:
    """Make the output folder, before any work is done.

    Raises:
        ConfigError: it is a file, cannot be made or written, or a result would replace an input.
    """
    where = printable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be made: {error.strerror}"
        raise ConfigError(f"the output {what}", where=where, fix="name a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError("the folder cannot be written", where=where, fix="choose another")
    sources = {item.path.resolve() for item in inputs}
    for item in inputs:
        if (folder / item.output_name).resolve() in sources:
            raise ConfigError(
                f"drawing {printable(item.path)} would overwrite an input, {item.output_name}",
                where=where,
                fix="choose another output folder",
            )
    return folder


def build_predictor(arguments: argparse.Namespace) -> Predictor:
    """The model of the configuration with the vocabulary of the command line."""
    register_all()
    cfg: CfgNode = load_config(arguments.config_file, arguments.opts)
    if not cfg.MODEL.WEIGHTS:
        raise WeightsError(
            "no weights: the model would be random",
            where="MODEL.WEIGHTS",
            fix="add --opts MODEL.WEIGHTS FILE",
        )
    register_from_config(cfg)
    # detections below the threshold are not worth computing masks for
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = arguments.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = arguments.confidence_threshold
    vocabulary = Vocabulary.parse(arguments.vocabulary) if arguments.vocabulary else None
    return Predictor(cfg, vocabulary=vocabulary, device=arguments.device)


def detect_all(
    inputs: Sequence[Input],
    predictor: Predictor,
    policy: BadSamplePolicy,
    arguments: argparse.Namespace,
    picture_folder: Path | None,
) -> Outcome:
    """Read, detect and draw, batch by batch; drawn pictures are written at once."""
    outcome = Outcome()
    sizes = [_size_or_guess(item.path) for item in inputs]
    bar = tqdm(total=len(inputs), unit="picture", desc="detecting")
    with bar as progress, logging_redirect_tqdm():
        for batch in aspect_batches(sizes, arguments.batch_size):
            pixels = {}
            for index in batch:
                rgb_HW3 = _read(inputs[index], policy, predictor, outcome)
                if rgb_HW3 is not None:
                    pixels[index] = rgb_HW3
            found = predictor(
                list(pixels.values()),
                threshold=arguments.confidence_threshold,
                batch_size=arguments.batch_size,
                array_format="RGB",
                file_names=[str(inputs[index].path) for index in pixels],
            )
            for (index, rgb_HW3), detections in zip(pixels.items(), found, strict=True):
                outcome.results[index] = detections
                if picture_folder is not None:
                    drawn_HW3 = draw_detections(rgb_HW3, detections)
                    write_picture(picture_folder / inputs[index].output_name, drawn_HW3)
                    if index < SHEET_MOST:
                        outcome.small[index] = _reduced(drawn_HW3)
            progress.update(len(batch))
    return outcome


def _size_or_guess(path: Path) -> tuple[int, int]:
    """(height, width); a corrupt file is met again, and reported, when it is read."""
    try:
        return image_size(path)
    except ImageError:
        return 1, 1


def _read(
    item: Input, policy: BadSamplePolicy, predictor: Predictor, outcome: Outcome
) -> NDArray[np.uint8] | None:
    def load() -> NDArray[np.uint8]:
        limit = predictor.cfg.INPUT.MAX_PIXELS
        try:
            return read_image(item.path, format="RGB", max_pixels=limit)
        except ImageError as error:
            outcome.first_error = outcome.first_error or str(error)
            raise

    return load() if item.named else policy.attempt(item.path, load)


def write_picture(path: Path, rgb_HW3: NDArray[np.uint8]) -> None:
    """Write a JPEG atomically; what is too long for the format is reduced."""
    image = Image.fromarray(rgb_HW3)
    image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    with replacing(path) as temporary:
        # full colour resolution: thin coloured lines and letters suffer first
        image.save(temporary, "JPEG", quality=92, subsampling=0)


def _reduced(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(rgb_HW3)
    image.thumbnail((720, 720), Image.Resampling.LANCZOS)
    return np.array(image)


def write_files(
    folder: Path,
    formats: Sequence[str],
    results: Sequence[Detections],
    outcome: Outcome,
    class_names: Sequence[str],
) -> list[str]:
    """Write what belongs to all pictures together; returns what the folder now holds."""
    written = []
    if "image" in formats:
        written.append(f"{len(results)} drawn pictures")
        if len(results) > 1 and outcome.small:
            places = sorted(outcome.small)
            captions = [
                f"{Path(outcome.results[place].file_name).name}: {len(outcome.results[place])} found"
                for place in places
            ]
            images = [outcome.small[place] for place in places]
            write_picture(folder / SHEET, contact_sheet(images, captions))
            first = f" (the first {len(places)})" if len(places) < len(results) else ""
            written.append(SHEET + first)
    if "coco" in formats:
        write_coco(folder / COCO, results, class_names)
        written.append(COCO)
    if "csv" in formats:
        write_csv(folder / CSV, results)
        written.append(CSV)
    return written


if __name__ == "__main__":
    sys.exit(main())
