"""Check datasets before training: annotations, image files, classes; repair what can be repaired.

    python tools/prepare_data.py check street_train street_val --registry street.yaml
    python tools/prepare_data.py check --json train.json --images photos --val val.json --decode
    python tools/prepare_data.py check --json train.json --images photos --fix clip
    python tools/prepare_data.py check --json shards.json --tars shards.npy
    python tools/prepare_data.py check --proposals proposals.json --images photos
    python tools/prepare_data.py check --pairs TarCaptions shards

The checks are those of the training loader, and more: all problems of all kinds are listed instead
of the first. Image files are looked for, and their sizes read; --decode reads every pixel. Several
datasets, and --val, must number their classes alike. --fix writes a repaired copy: "drop" leaves out
images and annotations that cannot be used, "clip" also cuts boxes at the border of the image. The
exit code is 1 where something cannot be used for training, also if a repaired file was written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import DatasetCatalog

from ext_common.config import get_config
from ext_common.data.array_file import ArrayFileError, read_header
from ext_common.data.checking.annotation_file import CheckedAnnotations, check_annotation_file
from ext_common.data.checking.captions import CAPTIONS
from ext_common.data.checking.dataset_check import (
    FileChecks,
    check_dataset,
    check_unlabelled,
    note_class_orders,
    spec_of_file,
    usable_processors,
)
from ext_common.data.checking.pairs import check_pairs
from ext_common.data.checking.proposals import Entry, check_proposals, read_proposals
from ext_common.data.checking.repair import FIXES, Repair, write_repaired
from ext_common.data.checking.report import class_mapping, summary, table
from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_registry import register_from_yaml
from ext_common.data.dataset_spec import UNLABELLED_TYPES, DatasetSpec
from ext_common.data.findings import Findings
from ext_common.errors import ConfigError, DatasetError
from ext_common.images import printable
from ext_common.tar_list import read_tar_counts, read_tar_list
from ext_common.tar_shards import TarDataset

from .files import output_path, progress_bar, say_written

NOT_REPAIRED = UNLABELLED_TYPES | {"class_folders"}
TYPES = ("coco", "lvis", "image_labels", CAPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered datasets")
    parser.add_argument(
        "--registry", action="append", default=[], metavar="YAML", help="file that lists datasets"
    )
    parser.add_argument("--json", metavar="FILE", help="an annotation file, instead of names")
    parser.add_argument("--proposals", metavar="FILE", help="a proposals file of --images")
    parser.add_argument(
        "--published", action="store_true", help="--proposals is a file of SoCo's authors"
    )
    parser.add_argument(
        "--pairs",
        nargs=2,
        metavar=("KIND", "PATHS"),
        help="image-text pairs, as FACTORY_TRAIN names",
    )
    parser.add_argument("--val", metavar="FILE", help="another one that must have the same classes")
    parser.add_argument("--images", default="", metavar="DIR", help="image folder of --json")
    parser.add_argument("--val-images", metavar="DIR", help="of --val; default: --images")
    parser.add_argument("--type", choices=TYPES, default="coco", help="of --json")
    parser.add_argument("--tars", metavar="DIR|FILE", help="archives of images with a tar_index")
    parser.add_argument("--allow-links", action="store_true", help="links may leave the folder")
    parser.add_argument("--no-sizes", action="store_true", help="do not open image files")
    parser.add_argument("--decode", action="store_true", help="read every pixel")
    parser.add_argument(
        "--jobs", type=int, default=usable_processors(), metavar="N", help="default: all cores"
    )
    parser.add_argument("--classes", action="store_true", help="print the numbering of the classes")
    parser.add_argument("--fix", choices=FIXES, help="write a repaired copy")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: <json>_fixed.json")


def run(args: argparse.Namespace) -> int:
    """Do it; 1 where a dataset cannot be used as it is."""
    if args.proposals:
        return _run_proposals(args)
    if args.pairs:
        return _run_pairs(args)
    specs = _datasets(args)
    if args.fix and (len(specs) > 1 or specs[0].type in NOT_REPAIRED):
        raise ConfigError("only one annotation file can be repaired at a time", where="--fix")
    files = FileChecks(
        sizes=not args.no_sizes,
        decode=args.decode,
        processes=args.jobs,
        max_pixels=get_config().INPUT.MAX_PIXELS,
    )
    tars = _archives(args.tars) if args.tars else None
    checked = [
        (spec.name, check_dataset(spec, files, tars=tars, bar=progress_bar))
        for spec in specs
        if spec.type not in UNLABELLED_TYPES
    ]
    note_class_orders(checked)
    wrong = sum(_show(name, found, classes=args.classes) for name, found in checked)
    wrong += sum(_check_images(spec, files) for spec in specs if spec.type in UNLABELLED_TYPES)
    if args.fix:
        _write_fixed(specs[0], checked[0][1], args)
    if wrong:
        raise DatasetError(
            f"{wrong:,} problems",
            where=", ".join(printable(spec.name) for spec in specs),
            fix=""
            if args.fix
            else "repair them, or write a file without them: --fix clip or --fix drop",
        )
    return 0


def _archives(path: str) -> TarDataset:
    """The archives, whose files keep their numbers where one was cut off since it was listed."""
    tars = read_tar_list(path)
    with progress_bar("archives", "archive") as progress:
        return TarDataset(tars, counts=read_tar_counts(path), progress=progress)


def _run_proposals(args: argparse.Namespace) -> int:
    """Check a proposals file against its image folder."""
    if args.names or args.json or not args.images:
        raise ConfigError("give --images DIR alone with it", where="--proposals")
    with progress_bar("proposals", "image") as progress:
        findings = check_proposals(
            _proposals(args.proposals), args.images, published=args.published, progress=progress
        )
    return _report(findings, args.proposals)


def _run_pairs(args: argparse.Namespace) -> int:
    """Check image-text pairs."""
    from regionclip_ext.data.pair_sources import open_pairs
    from regionclip_ext.data.pairs import PairRecords

    if args.names or args.json:
        raise ConfigError("give it alone", where="--pairs")
    pairs = PairRecords(open_pairs(*args.pairs))
    print(f"{len(pairs):,} pairs")
    with progress_bar("pairs", "pair") as progress:
        findings = check_pairs(
            pairs,
            decode=args.decode,
            processes=args.jobs,
            max_pixels=get_config().INPUT.MAX_PIXELS,
            progress=progress,
        )
    return _report(findings, args.pairs[1])


def _report(findings: Findings, where: str) -> int:
    """Print the table; an error where there are any."""
    for line in table(findings):
        print(f"  {line}")
    if wrong := findings.total(findings.kinds("error")):
        raise DatasetError(f"{wrong:,} problems", where=printable(where))
    return 0


def _proposals(path: str) -> Iterator[Entry]:
    """Entries of a file that ``soco-proposals`` wrote, or of a JSON file."""
    try:
        read_header(path)
    except (OSError, ArrayFileError):  # what is wrong with a JSON file is told when it is read
        yield from read_proposals(path)
        return
    from soco_ext.proposals.proposal_file import open_proposals

    for image in open_proposals(path, check=True).items():
        yield image.name, image.boxes_K4


def _datasets(args: argparse.Namespace) -> list[DatasetSpec]:
    """The datasets that are asked for."""
    for path in args.registry:
        register_from_yaml(path)
    if bool(args.names) == bool(args.json):
        raise ConfigError("nothing to check", fix="give names of datasets, or --json FILE")
    if args.json:
        images = [args.images, args.images if args.val_images is None else args.val_images]
        return [
            spec_of_file(path, folder, args.type, allow_links=args.allow_links)
            for path, folder in zip([args.json, args.val], images, strict=True)
            if path
        ]
    found = []
    for name in args.names:
        require_dataset(name)
        spec = DatasetCatalog[name]
        if not isinstance(spec, DatasetSpec):
            raise DatasetError(
                "not one of our datasets", where=f"dataset {name!r}", fix="give its --json FILE"
            )
        found.append(spec)
    return found


def _check_images(spec: DatasetSpec, files: FileChecks) -> int:
    """Check a dataset of images alone; returns the number of errors."""
    count, findings = check_unlabelled(spec, files, bar=progress_bar)
    print(f"{printable(spec.name)}: {count:,} images")
    for line in table(findings):
        print(f"  {line}")
    return findings.total(findings.kinds("error"))


def _show(name: str, checked: CheckedAnnotations, *, classes: bool) -> int:
    """Print what was found; returns the number of errors."""
    print(summary(name, checked))
    for line in [*(class_mapping(checked) if classes else []), *table(checked.findings)]:
        print(f"  {line}")
    return checked.findings.total(checked.findings.kinds("error"))


def _write_fixed(spec: DatasetSpec, checked: CheckedAnnotations, args: argparse.Namespace) -> None:
    """Write the repaired file and check it."""
    source = Path(spec.json)
    target = output_path(args.output, source, "_fixed")
    with progress_bar("writing", "B") as progress:
        changes = write_repaired(source, target, Repair.of(checked, args.fix), progress=progress)
    done = ", ".join(f"{count:,} {what}" for what, count in sorted(changes.items()) if count)
    say_written(target, done or "nothing to repair")
    again = check_annotation_file(target, spec.load, captions=spec.type == CAPTIONS)
    again.findings.refuse(where=f"{printable(target)} cannot be repaired")
