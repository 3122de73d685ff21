"""AP50 of base, novel and all 65 classes, returned with the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ext_common.evaluation.ground_truth import load_ground_truth
from regionclip_ext.evaluation.ovd_coco import NOVEL_NAMES, OvdCocoEvaluator, split_groups
from tests.golden_cases import golden_root

NAME = "regionclip_coco65_golden"


@pytest.fixture
def dataset(tmp_path: Path):
    case = json.loads((golden_root() / "regionclip" / "coco65_split_eval.json").read_text())
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(case["gt"]))
    categories = sorted(case["gt"]["categories"], key=lambda category: category["id"])
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(
        json_file=str(path),
        evaluator_type="coco_ovd",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )
    yield case
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.golden
def test_golden_split_ap(dataset: dict) -> None:
    evaluator = OvdCocoEvaluator(NAME, tasks=("bbox",), distributed=False)
    results = evaluator.score(load_ground_truth(NAME), dataset["detections"], "bbox")
    for metric, value in dataset["expected"].items():
        scale = 1 if metric.startswith("AP50_split") else 100
        assert results[metric] / scale == pytest.approx(value / scale, abs=1e-6)
    assert results["AP50-group-novel"] == pytest.approx(100 * results["AP50_split_target"])


def test_splits_exist_for_exactly_the_65_classes() -> None:
    names = [*NOVEL_NAMES, *(f"base {i}" for i in range(48))]
    groups = split_groups(names)
    assert (len(groups["base"]), len(groups["novel"])) == (48, 17)
    assert split_groups(names[:-1]) == {}
    assert split_groups([f"other {i}" for i in range(65)]) == {}
