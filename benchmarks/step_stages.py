"""Time per stage and peak memory of whole Detic steps: ``python -m benchmarks.step_stages``.

Ours and plain as in the case ``step``, which also checks that they compute the same. On CUDA both
are measured in float32 and in bfloat16 with channels_last (backbone and box heads; what follows them
stays in float32), with ``--compile`` with a compiled backbone as well.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split
from benchmarks.detic_step import KINDS, SMALL, StepModel, build_step, predictors
from benchmarks.peak_memory import PeakMemory, restarted
from benchmarks.report import machine
from benchmarks.timing import now
from detic_ext.modeling import meta_arch, mixed_roi_heads

STAGES = ("backbone", "proposals", "box heads", "classifier", "NMS", "masks", "backward")


class StageClock:
    """Seconds of each stage; a stage inside another one counts for the outer one.

    Args:
        device: what to wait for before each look at the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inside = threading.local()

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time added to a stage."""

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            if getattr(self._inside, "yes", False):
                return function(*arguments, **keywords)
            self._inside.yes = True
            start = now(self.device)
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[stage] += now(self.device) - start
                self._inside.yes = False

        return timed

    @contextmanager
    def watching(self, step: StepModel) -> Iterator[None]:
        """Time the parts of a model."""
        model: Any = step.model
        heads = model.roi_heads
        places: list[tuple[str, Any, str]] = [
            ("backbone", model.backbone, "forward"),
            ("proposals", model.proposal_generator, "forward"),
            ("proposals", meta_arch, "propose_without_targets"),
            ("box heads", heads, "_box_features"),
            ("NMS", mixed_roi_heads, "detect"),
            ("masks", heads, "_mask_losses"),
            ("masks", heads, "forward_with_given_boxes"),
        ]
        for predictor in predictors(model):
            for name in ("box_losses", "image_label_loss", "probabilities"):
                places.append(("classifier", predictor, name))
        with ExitStack() as stack:
            for stage, owner, name in places:
                timed = self.wrap(stage, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
            yield


@contextmanager
def half_precision(step: StepModel) -> Iterator[None]:
    """Backbone and box heads in bfloat16; their results become float32 again."""
    model: Any = step.model
    kind = next(model.parameters()).device.type

    def lowered(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with torch.autocast(kind, torch.bfloat16):
                result = function(*arguments)
            if isinstance(result, dict):
                return {name: value.float() for name, value in result.items()}
            return result.float()

        return run

    with ExitStack() as stack:
        for module in (model.backbone, *model.roi_heads.box_head):
            stack.enter_context(patch.object(module, "forward", lowered(module.forward)))
        yield


def measure(
    step: StepModel, kind: str, *, plain: bool, half: bool, device: torch.device, repeat: int
) -> dict[str, float]:
    """Median milliseconds of each stage, of what is ``left``, and of ``all``; peak ``MB``."""
    run = step.run_plain if plain else step.run
    rows: list[dict[str, float]] = []
    with half_precision(step) if half else nullcontext():
        if device.type == "cuda":
            run(kind)  # kernels are chosen in the first call
        step.model.zero_grad(set_to_none=True)
        memory = PeakMemory(device)
        for _ in range(repeat):
            rows.append(_one_call(step, functools.partial(run, kind), plain, device))
        peak = memory.megabytes()
    medians = {name: 1e3 * statistics.median(row[name] for row in rows) for name in rows[0]}
    return medians | {"MB": peak}


def _one_call(
    step: StepModel, run: Callable[[], Any], plain: bool, device: torch.device
) -> dict[str, float]:
    clock = StageClock(device)
    with ExitStack() as stack:
        backward = clock.wrap("backward", StepModel.backward)
        stack.enter_context(patch.object(StepModel, "backward", backward))
        if plain:  # it replaces functions when it runs, so it is watched from inside
            watched = _watched(StepModel.run, clock)
            stack.enter_context(patch.object(StepModel, "run", watched))
        else:
            stack.enter_context(clock.watching(step))
        start = now(device)
        run()
        total = now(device) - start
    left = total - sum(clock.seconds.values())
    return {**clock.seconds, "left": left, "all": total}


def _watched(run: Callable[..., Any], clock: StageClock) -> Callable[..., Any]:
    def watched(self: StepModel, kind: str) -> Any:
        with clock.watching(self):
            return run(self, kind)

    return watched


def table(rows: dict[tuple[str, ...], dict[str, float]]) -> str:
    """Markdown, one line per measurement."""
    names = [*STAGES, "left", "all", "MB"]
    head = ["batch", "classes", "way", *(f"{n} ms" if n != "MB" else "peak MB" for n in names)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "--:|" * len(names)]
    for key, row in rows.items():
        figures = [f"{row[name]:.0f}" if row[name] >= 0.5 else "" for name in names]
        lines.append("| " + " | ".join([*key, *figures]) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_stages", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--classes", type=int, nargs="+", default=[1203, 22047])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--size", default="640", help="side of a picture, or small: a tiny model")
    parser.add_argument("--images", type=int, default=1, help="per batch; four times with labels")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="the backbone (CUDA)")
    return parser


def _measure_all(args: argparse.Namespace, device: torch.device) -> dict[Any, dict[str, float]]:
    small = args.size == "small"
    rows: dict[Any, dict[str, float]] = {}
    for classes in args.classes:
        step = build_step(
            device,
            num_classes=classes,
            opts=SMALL if small else (),
            size=64 if small else int(args.size),
            images=args.images,
        )
        for half in (False, True) if device.type == "cuda" else (False,):
            if half:
                step.model.to(memory_format=torch.channels_last)
                if args.compile:
                    step.model.backbone = torch.compile(step.model.backbone)
            for kind in args.kind:
                for plain in (False, True):
                    way = ("plain" if plain else "ours") + (" bf16" if half else "")
                    rows[kind, str(classes), way] = measure(
                        step, kind, plain=plain, half=half, device=device, repeat=args.repeat
                    )
                    print(kind, classes, way, "done", file=sys.stderr, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda, but PyTorch sees no CUDA device", file=sys.stderr)
        return 2
    rows = _measure_all(args, device)
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    print(table(rows))
    return 0


if __name__ == "__main__":
    again = restarted("benchmarks.step_stages")
    sys.exit(main() if again is None else again)
