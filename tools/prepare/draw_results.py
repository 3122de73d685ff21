"""Pictures with the predictions of an evaluation's results file.

    python tools/prepare_data.py draw-results --input output/inference/coco_instances_results.json \\
        --dataset coco_2017_ovd_all_test --output drawn --show-unique-boxes --conf-threshold 0.05 \\
        --max-boxes 25 --small-region-px 8100

Pictures keep their names and, where the dataset has several folders, their folders. With
--show-unique-boxes a region that answers to many classes is drawn once, with its best class.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image
from tqdm import tqdm

from ext_common.data.dataset_names import require_dataset
from ext_common.data.dataset_registry import register_from_yaml
from ext_common.drawing import draw_detections
from ext_common.errors import DatasetError
from ext_common.evaluation.ground_truth import load_ground_truth
from ext_common.images import printable, read_image
from ext_common.packages import register_all
from ext_common.results import Detections
from regionclip_ext.extraction.chosen_results import Prediction, choose, read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="results JSON")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="registered; has the images"
    )
    parser.add_argument("--registry", type=Path, metavar="FILE", help="YAML that registers it")
    parser.add_argument(
        "--conf-threshold", type=float, default=0.5, metavar="S", help="default: 0.5"
    )
    parser.add_argument("--show-unique-boxes", action="store_true", help="one class per box")
    parser.add_argument("--max-boxes", type=int, default=30, metavar="N", help="default: 30")
    parser.add_argument("--small-region-px", type=float, default=0.0, metavar="AREA")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    register_all()
    if args.registry:
        register_from_yaml(args.registry)
    require_dataset(args.dataset, where="--dataset")
    results = read_results(args.input)
    records = {record["image_id"]: record for record in DatasetCatalog.get(args.dataset)}
    unknown = [key for key in results if key not in records]
    if unknown:
        raise DatasetError(
            f"{len(unknown)} images are not in {args.dataset}, the first is {unknown[0]!r}",
            where=printable(args.input),
            fix="name the dataset that was evaluated",
        )
    truth = load_ground_truth(args.dataset)  # results have the category ids of evaluators
    classes = {number: row for row, number in enumerate(truth.class_ids)}
    _check_categories(results, classes, args)
    outputs = _output_paths(records, args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    for key, predictions in tqdm(results.items(), desc="drawing", unit="picture"):
        chosen = choose(
            predictions,
            threshold=args.conf_threshold,
            most=args.max_boxes,
            smallest=args.small_region_px,
            unique=args.show_unique_boxes,
        )
        _draw(records[key], chosen, classes, truth.class_names, outputs[key])
    print(f"wrote {printable(args.output)}: {len(results)} pictures", flush=True)
    return 0


def _check_categories(
    results: Mapping[Any, Sequence[Prediction]],
    classes: Mapping[int, int],
    args: argparse.Namespace,
) -> None:
    used = {entry["category_id"] for predictions in results.values() for entry in predictions}
    unknown = sorted(used - classes.keys(), key=str)
    if unknown:
        raise DatasetError(
            f"{len(unknown)} category ids are not in {args.dataset}, the first is {unknown[0]!r}",
            where=printable(args.input),
            fix="name the dataset that was evaluated",
        )


def _output_paths(records: Mapping[Any, Any], output: Path) -> dict[Any, Path]:
    """Where the drawing of every picture goes: below ``output`` as below the dataset's folder.

    A name is kept whole where two of a folder differ in their endings only.
    """
    files = {key: Path(os.path.abspath(record["file_name"])) for key, record in records.items()}
    root = os.path.commonpath([file.parent for file in files.values()])
    names = {key: file.relative_to(root) for key, file in files.items()}
    stems = Counter(name.with_suffix("") for name in names.values())
    return {
        key: output
        / name.with_name(f"{name.stem if stems[name.with_suffix('')] == 1 else name.name}.png")
        for key, name in names.items()
    }


def _draw(
    record: Any,
    chosen: Sequence[Prediction],
    classes: Mapping[int, int],
    class_names: tuple[str, ...],
    output: Path,
) -> None:
    rgb_HW3 = read_image(record["file_name"], format="RGB")
    boxes = np.array([entry["bbox"] for entry in chosen], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    detections = Detections(
        file_name=record["file_name"],
        image_size=(rgb_HW3.shape[0], rgb_HW3.shape[1]),
        boxes_R4=boxes,
        scores_R=np.array([entry["score"] for entry in chosen], np.float32),
        class_ids_R=np.array([classes[entry["category_id"]] for entry in chosen], np.int64),
        class_names=class_names,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_detections(rgb_HW3, detections)).save(output)
