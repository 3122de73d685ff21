"""Detecting in videos and camera streams, frame by frame.

Shapes: rgb_HW3 = uint8, RGB.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ext_common.drawing import draw_detections
from ext_common.errors import ConfigError, ImageError
from ext_common.images import printable
from ext_common.predictor import Predictor
from ext_common.results import Detections, write_coco, write_csv
from ext_common.video import VIDEO_SUFFIXES, CameraReader, VideoReader

from .inputs import prepare_folder
from .model import build_predictor
from .screen import ScreenReader
from .sinks import Show, open_sink
from .timings import StageTimes

Source = VideoReader | CameraReader | ScreenReader


@dataclass(frozen=True)
class Output:
    """Files of a run.

    Attributes:
        drawn: a video file, a folder for pictures, or None for a window.
        shown: whether frames are drawn at all.
        coco, csv: result files, None = not written.
    """

    drawn: Path | None
    shown: bool
    coco: Path | None
    csv: Path | None

    def files(self) -> list[Path]:
        """What is written."""
        drawn = self.drawn if self.shown else None
        return [path for path in (drawn, self.coco, self.csv) if path is not None]


@dataclass
class Run:
    """What has been seen so far."""

    frames: int = 0
    found: int = 0
    results: list[Detections] = field(default_factory=list)
    interrupted: bool = False
    times: StageTimes = field(default_factory=StageTimes)


def run_frames(arguments: argparse.Namespace, formats: Sequence[str]) -> str:
    """Detect in a video or stream; returns the closing sentence, after any table.

    Raises:
        KeyboardInterrupt: a video was interrupted; what there was of it is written. A camera is
            ended that way.
    """
    # libav writes a line for every broken block to the terminal; we count broken frames
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    live = bool(arguments.webcam)
    name = arguments.webcam or str(Path(arguments.video_input).expanduser())
    with open_source(arguments) as source:  # before the model is built, which takes longer
        output = plan_output(arguments, formats)
        predictor = build_predictor(arguments)
        run = Run()
        if output.shown:
            with open_sink(output.drawn, source.fps, live=live) as show:
                detect_frames(source, predictor, show, arguments, run, name)
                _require_frames(run, name)
        else:
            detect_frames(source, predictor, None, arguments, run, name)
            _require_frames(run, name)
        if output.coco is not None:
            write_coco(output.coco, run.results, predictor.class_names)
        if output.csv is not None:
            write_csv(output.csv, run.results)
        if run.interrupted and not live:
            raise KeyboardInterrupt
        sentence = _sentence(run, source, output)
    return f"{run.times.table(run.frames)}\n{sentence}" if arguments.timings else sentence


def open_source(arguments: argparse.Namespace) -> Source:
    """The video, camera, stream or screen."""
    if arguments.video_input:
        return VideoReader(arguments.video_input)
    if arguments.webcam == "screen":
        return ScreenReader()
    name: str = arguments.webcam
    return CameraReader(int(name) if name.isdecimal() else name)


def plan_output(arguments: argparse.Namespace, formats: Sequence[str]) -> Output:
    """Where results go; folders are made.

    A folder gets a video named like the input, and of a camera numbered pictures.

    Raises:
        ConfigError: the output cannot be written, or is the input.
    """
    if not arguments.output:
        return Output(None, True, None, None)
    path = Path(arguments.output).expanduser()
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        folder, drawn, stem = path.parent, path, path.stem
    else:
        folder, drawn, stem = path, path, "detections"
    prepare_folder(folder, ())
    if arguments.video_input and drawn == folder:
        stem = Path(arguments.video_input).stem
        drawn = folder / f"{stem}.mp4"
    if arguments.video_input and drawn.resolve() == Path(arguments.video_input).resolve():
        raise ConfigError(
            "the drawn video would overwrite the input",
            where=printable(drawn),
            fix="choose another output",
        )
    return Output(
        drawn=drawn,
        shown="image" in formats,
        coco=folder / f"{stem}.json" if "coco" in formats else None,
        csv=folder / f"{stem}.csv" if "csv" in formats else None,
    )


def detect_frames(
    source: Source,
    predictor: Predictor,
    show: Show | None,
    arguments: argparse.Namespace,
    run: Run,
    name: str,
) -> None:
    """Read, detect, draw and show until the source, the user or ``--max-frames`` ends it."""
    keep = "coco" in arguments.format or "csv" in arguments.format
    times = run.times
    frames = itertools.islice(times.iterate("read", source), arguments.max_frames)
    total = min(source.announced or 2**31, arguments.max_frames or 2**31)
    bar = tqdm(total=total if total < 2**31 else None, unit="frame", desc="detecting")
    with bar as progress, logging_redirect_tqdm():
        try:
            for batch in _batches(frames, arguments.batch_size):
                places = range(run.frames, run.frames + len(batch))
                with times.measure("model"):
                    found = predictor(
                        batch,
                        threshold=arguments.confidence_threshold,
                        batch_size=arguments.batch_size,
                        array_format="RGB",
                        file_names=[f"{name}#{place}" for place in places],
                    )
                for rgb_HW3, detections in zip(batch, found, strict=True):
                    run.frames += 1
                    run.found += len(detections)
                    if keep:
                        run.results.append(detections)
                    if show is not None and not _shown(show, rgb_HW3, detections, times):
                        return
                progress.update(len(batch))
        except KeyboardInterrupt:
            run.interrupted = True


def _shown(
    show: Show, rgb_HW3: NDArray[np.uint8], detections: Detections, times: StageTimes
) -> bool:
    with times.measure("draw"):
        drawn_HW3 = draw_detections(rgb_HW3, detections)
    with times.measure("write"):
        return show(drawn_HW3)


def _batches(frames: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(frames)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _require_frames(run: Run, name: str) -> None:
    if run.frames == 0 and run.interrupted:
        raise KeyboardInterrupt
    if run.frames == 0:
        raise ImageError(
            "not one frame can be read", where=printable(name), fix="convert it with ffmpeg"
        )


def _sentence(run: Run, source: Source, output: Output) -> str:
    parts = [f"{run.frames} frames, {run.found} detections"]
    if source.skipped:
        parts.append(f"{source.skipped} broken frames skipped")
    if isinstance(source, CameraReader) and source.unplugged:
        parts.append("the camera gives no more frames")
    files = ", ".join(printable(path) for path in output.files())
    return ", ".join(parts) + (f"; written: {files}" if files else "")
