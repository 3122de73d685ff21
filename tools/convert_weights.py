"""Convert weight files, or say how far one covers a configuration (docs/model_zoo.md).

    # a classification network as detector backbone, for MODEL.WEIGHTS
    python tools/convert_weights.py --path resnet50_miil_21k.pth --format pkl
    # a training checkpoint as the authors would publish it, and with other classes
    python tools/convert_weights.py --path output/model_final.pth --output detic.pth --counters drop
    python tools/convert_weights.py --path detic.pth --output mine.pth --classes my_classes.npz
    # a pretraining of SoCo as weights for detectron2's detectors
    python tools/convert_weights.py --path output/SoCo/model_final.pth --export soco-fpn --output soco.pkl
    # what is missing, in excess or of another shape
    python tools/convert_weights.py --path detic.pth --check configs/detic/NAME.yaml

What is written holds the model alone: no optimizer, no schedule. Files are read without running code.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import ext_common  # noqa: F401 - first: it repairs detectron2 0.6

# isort: split

from torch import Tensor

from detic_ext.losses.class_frequency import frequency_weight, read_image_counts
from ext_common.checkpoint import load_model_weights
from ext_common.config import load_config
from ext_common.data.dataset_registry import register_from_config
from ext_common.errors import ExtError, WeightsError
from ext_common.modeling.build import build_model
from ext_common.packages import register_all
from ext_common.registries import WEIGHT_EXPORT_REGISTRY
from ext_common.stored_weights import StoredWeights, read_weights
from ext_common.vocabulary import Vocabulary
from ext_common.weights_export import (
    SUFFIXES,
    ExportedWeights,
    is_detector,
    with_classes,
    with_counters,
    without_classes,
    without_counters,
    write_weights,
)
from ext_common.weights_match import LoadReport
from ext_common.worker_errors import first_line

KEEP, DROP, ADD = "keep", "drop", "add"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", required=True, type=Path, metavar="FILE", help="what to read")
    parser.add_argument("--output", type=Path, metavar="FILE", help="what to write; suffix = kind")
    parser.add_argument(
        "--format",
        choices=[suffix[1:] for suffix in SUFFIXES],
        help="kind of the output where --output is not given: beside the input, with this suffix",
    )
    parser.add_argument(
        "--kind",
        choices=("backbone", "detector"),
        help="backbone: names are ends of a detector's names; default: by the names",
    )
    parser.add_argument(
        "--export",
        default="",
        metavar="NAME",
        help="other names for the weights of a pretraining: soco-fpn, soco-c4, soco-mmdet",
    )
    parser.add_argument(
        "--counters",
        choices=(KEEP, ADD, DROP),
        default=KEEP,
        help="num_batches_tracked of batch norms: older files lack it, newer ones have it",
    )
    parser.add_argument(
        "--classes",
        default=KEEP,
        metavar="keep|drop|FILE",
        help="class columns and frequencies: leave out, or make the columns from a vocabulary file",
    )
    parser.add_argument(
        "--frequencies",
        type=Path,
        metavar="JSON",
        help="with --classes FILE: images per class, for federated training",
    )
    parser.add_argument(
        "--check", metavar="CONFIG", help="print how the file covers the model of this YAML"
    )
    parser.add_argument(
        "--unsafe-load",
        action="store_true",
        help="run the code in the input's pickle; only if you trust its author",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of expected errors too"
    )
    parser.add_argument("opts", nargs="*", default=[], help="KEY VALUE pairs for --check")
    return parser


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line; what is wrong with it ends the program with exit code 2."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    changes = arguments.counters != KEEP or arguments.classes != KEEP or arguments.kind is not None
    changes = changes or bool(arguments.export)
    if arguments.export and arguments.kind is not None:
        parser.error("--kind follows from --export")
    writes = arguments.output is not None or arguments.format is not None
    if not writes and (changes or not arguments.check):
        parser.error("give --output or --format (and --check alone to look at a file)")
    if arguments.output is not None and arguments.format is not None:
        parser.error("--output and --format exclude each other: the suffix of --output is the kind")
    if arguments.frequencies is not None and arguments.classes in (KEEP, DROP):
        parser.error("--frequencies belongs to --classes FILE")
    if arguments.opts and not arguments.check:
        parser.error(f"{arguments.opts[0]}: KEY VALUE pairs belong to --check")
    return arguments


def output_path(arguments: argparse.Namespace) -> Path | None:
    """Where to write; None if only ``--check`` was asked for.

    Raises:
        WeightsError: it is the input itself.
    """
    path: Path = arguments.path
    output: Path | None = arguments.output
    if arguments.format is not None:
        output = path.with_suffix(f".{arguments.format}")
        if output == path:
            output = path.with_name(f"{path.stem}_converted{path.suffix}")
    if output is not None and output.exists() and output.samefile(path):
        raise WeightsError("would be overwritten", where=str(path), fix="give another --output")
    return output


def convert(arguments: argparse.Namespace) -> ExportedWeights:
    """The file's model with the changes of the command line.

    Raises:
        WeightsError: it cannot be read, or has nothing to change.
        VocabularyError: classes that do not fit.
    """
    stored = read_weights(arguments.path, allow_unsafe=arguments.unsafe_load)
    if stored.caffe2:
        raise WeightsError(
            "a Caffe2 file, whose batch norms are folded",
            where=str(arguments.path),
            fix="MODEL.WEIGHTS takes it as it is",
        )
    weights = exported(stored, arguments) if arguments.export else as_read(stored, arguments.kind)
    if arguments.counters == ADD:
        weights = replace(weights, tensors=with_counters(weights.tensors))
    elif arguments.counters == DROP:
        weights = replace(weights, tensors=without_counters(weights.tensors))
    if arguments.classes == DROP:
        weights = replace(weights, tensors=without_classes(weights.tensors), vocabulary=None)
    elif arguments.classes != KEEP:
        weights = exchange_classes(weights, arguments)
    return weights


def as_read(stored: StoredWeights, kind: str | None) -> ExportedWeights:
    """The model of a file, as a backbone or as a detector."""
    backbone = kind == "backbone" if kind else stored.by_suffix or not is_detector(stored.tensors)
    vocabulary = None
    if stored.vocabulary is not None:
        vocabulary = Vocabulary.from_state_dict(stored.vocabulary)
    return ExportedWeights(stored.tensors, by_suffix=backbone, vocabulary=vocabulary)


def exported(stored: StoredWeights, arguments: argparse.Namespace) -> ExportedWeights:
    """The weights under the names of ``--export``; says what is left out."""
    register_all()
    known = sorted(name for name, _ in WEIGHT_EXPORT_REGISTRY)
    if arguments.export not in known:
        raise WeightsError(
            f"{arguments.export!r} is not known", where="--export", fix=f"one of {', '.join(known)}"
        )
    weights: ExportedWeights = WEIGHT_EXPORT_REGISTRY.get(arguments.export)(stored.tensors)
    left_out = len(stored.tensors) - len(weights.tensors)
    print(f"{arguments.path}: {len(weights.tensors)} tensors exported, {left_out} left out")
    return weights


def exchange_classes(weights: ExportedWeights, arguments: argparse.Namespace) -> ExportedWeights:
    """The same detector for the classes of ``--classes``."""
    vocabulary = Vocabulary.parse(arguments.classes, generate_names=True)
    freq_weight_C: Tensor | None = None
    if arguments.frequencies is not None:
        counts = read_image_counts(arguments.frequencies)
        freq_weight_C = frequency_weight(counts, num_classes=len(vocabulary))
    tensors = with_classes(weights.tensors, vocabulary, freq_weight_C)
    return replace(weights, tensors=tensors, vocabulary=vocabulary)


def check(path: Path, arguments: argparse.Namespace) -> LoadReport:
    """Build the model of a configuration and load the file into it, as training would.

    Raises:
        ConfigError: the configuration cannot be read.
        WeightsError: the file cannot be read, or belongs to another model altogether.
    """
    register_all()
    opts = [*arguments.opts, "MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu"]
    # the file is what gives the weights here
    cfg = load_config(arguments.check, [*opts, "MODEL.TIMM.PRETRAINED", "False"])
    register_from_config(cfg)
    model = build_model(cfg)
    return load_model_weights(model, path, strict=False, unsafe=arguments.unsafe_load)


def format_report(report: LoadReport, config: str) -> str:
    """The report with every name."""
    shapes = [f"{name}: {list(a)} for {list(b)}" for name, a, b in report.mis_shaped]
    target = config if report.backbone is None else f"{report.backbone or 'the model'}* of {config}"
    lines = [f"{report.source} for {target}", f"loaded: {len(report.loaded)} tensors"]
    for title, names in (
        ("missing", report.missing),
        ("unexpected", report.unexpected),
        ("mis-shaped", shapes),
        ("not finite", report.non_finite),
        ("from the configured vocabulary", report.kept),
        ("may be missing", report.permitted),
    ):
        if names:
            lines += [f"{title}: {len(names)}", *(f"  {name}" for name in names)]
    lines.append("covers the model" if report.complete else "does not cover the model")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Convert, write and check as the command line says.

    Returns:
        0, or 1 where a checked file does not cover the model.
    """
    output = output_path(arguments)
    if output is not None:
        weights = convert(arguments)
        write_weights(weights, output)
        kind = "backbone" if weights.by_suffix else "detector"
        print(f"{output}: {len(weights.tensors)} tensors of a {kind}")
        if weights.vocabulary is not None and output.suffix != ".pth":
            print(f"{output.suffix} files do not record class names: keep the vocabulary file")
    if not arguments.check:
        return 0
    report = check(output or arguments.path, arguments)
    print(format_report(report, arguments.check))
    return 0 if report.complete else 1


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit code: 0 done, 1 error or uncovered, 2 wrong usage, 130 interrupted.
    """
    arguments = parse_arguments(sys.argv[1:] if words is None else words)
    if not logging.getLogger("ext_common").handlers:
        # the report names everything once
        logging.getLogger("ext_common").addHandler(logging.NullHandler())
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Exception as error:
        expected = isinstance(error, ExtError)
        if arguments.debug or not expected:
            traceback.print_exc()
        return fail(str(error) if expected else f"{type(error).__name__}: {first_line(error)}", 1)


def fail(what: str, code: int) -> int:
    """Print the final line."""
    sys.stdout.flush()
    print(f"convert_weights: error: {' '.join(what.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
