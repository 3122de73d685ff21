"""Detecting in pictures: batches, drawn pictures, and one file of all results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ext_common.atomic_file import replacing
from ext_common.drawing import contact_sheet, draw_detections
from ext_common.errors import ImageError
from ext_common.images import BadSamplePolicy, image_size, printable, read_image
from ext_common.predictor import Predictor, aspect_batches
from ext_common.results import Detections, write_coco, write_csv

from .inputs import SHEET, Input, collect_inputs, prepare_folder
from .model import build_predictor
from .timings import StageTimes

COCO, CSV = "detections.json", "detections.csv"
SHEET_MOST = 60
"""A contact sheet shows the first pictures only."""
_JPEG_SIDE = 65_500  # a little below what the format can hold


@dataclass
class Outcome:
    """What the run has found so far."""

    results: dict[int, Detections] = field(default_factory=dict)  # by the input's place
    small: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # for the contact sheet
    first_error: str = ""
    policy: BadSamplePolicy = field(default_factory=lambda: BadSamplePolicy("skip", limit=1.0))
    times: StageTimes = field(default_factory=StageTimes)


def run_pictures(arguments: argparse.Namespace, formats: Sequence[str]) -> str:
    """Detect in the files of ``--input``; returns the closing sentence, after any table."""
    inputs = collect_inputs(arguments.input)
    drawn = "image" in formats
    folder = prepare_folder(Path(arguments.output), inputs if drawn else ())
    predictor = build_predictor(arguments)
    outcome = Outcome()
    detect_all(inputs, predictor, outcome, arguments, folder if drawn else None)
    results = [outcome.results[index] for index in sorted(outcome.results)]
    if not results:
        raise ImageError(
            f"none of the {len(inputs)} pictures can be read",
            fix=f"the first: {outcome.first_error}",
        )
    with outcome.times.measure("write"):
        written = write_files(folder, formats, results, outcome, predictor.class_names)
    found = sum(len(result) for result in results)
    bad = outcome.policy.skipped
    skipped = f", {bad} corrupt files skipped" if bad else ""
    where = f"in {printable(folder)}: {', '.join(written)}"
    sentence = f"{len(results)} pictures, {found} detections{skipped}; {where}"
    if arguments.timings:
        return f"{outcome.times.table(len(results))}\n{sentence}"
    return sentence


def detect_all(
    inputs: Sequence[Input],
    predictor: Predictor,
    outcome: Outcome,
    arguments: argparse.Namespace,
    picture_folder: Path | None,
) -> None:
    """Read, detect and draw, batch by batch; drawn pictures are written at once."""
    sizes = [_size_or_guess(item.path) for item in inputs]
    bar = tqdm(total=len(inputs), unit="picture", desc="detecting")
    with bar as progress, logging_redirect_tqdm():
        for batch in aspect_batches(sizes, arguments.batch_size):
            pixels = {}
            for index in batch:
                with outcome.times.measure("read"):
                    rgb_HW3 = _read(inputs[index], predictor, outcome)
                if rgb_HW3 is not None:
                    pixels[index] = rgb_HW3
            with outcome.times.measure("model"):
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
                    path = picture_folder / inputs[index].output_name
                    _draw(index, rgb_HW3, detections, path, outcome)
            progress.update(len(batch))


def _draw(
    index: int, rgb_HW3: NDArray[np.uint8], detections: Detections, path: Path, outcome: Outcome
) -> None:
    with outcome.times.measure("draw"):
        drawn_HW3 = draw_detections(rgb_HW3, detections)
    with outcome.times.measure("write"):
        write_picture(path, drawn_HW3)
    if index < SHEET_MOST:
        outcome.small[index] = _reduced(drawn_HW3)


def _size_or_guess(path: Path) -> tuple[int, int]:
    """(height, width); a corrupt file is met again, and reported, when it is read."""
    try:
        return image_size(path)
    except ImageError:
        return 1, 1


def _read(item: Input, predictor: Predictor, outcome: Outcome) -> NDArray[np.uint8] | None:
    def load() -> NDArray[np.uint8]:
        limit = predictor.cfg.INPUT.MAX_PIXELS
        try:
            return read_image(item.path, format="RGB", max_pixels=limit)
        except ImageError as error:
            outcome.first_error = outcome.first_error or str(error)
            raise

    return load() if item.named else outcome.policy.attempt(item.path, load)


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
