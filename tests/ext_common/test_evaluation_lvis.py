"""LVIS AP against the lvis package (patched, in its own process), and files that are not LVIS."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from ext_common.evaluation.coco import CocoEvaluator
from ext_common.evaluation.lvis import LvisEvaluator
from tests.ext_common.evaluation_cases import (
    coco_records,
    make_instances,
    perfect_predictions,
    random_content,
    random_predictions,
    registered,
    run,
)

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]


def lvis_package(folder: Path, cases) -> list[dict]:
    """Answers of the lvis package for (content, predictions, task, max_dets)."""
    jobs = []
    for i, (content, predictions, task, max_dets) in enumerate(cases):
        job = {"task": task, "max_dets": max_dets}
        for kind, value in (("truth", content), ("found", coco_records(content, predictions))):
            path = folder / f"oracle_{kind}_{i}.json"
            path.write_text(json.dumps(value))
            job[kind] = str(path)
        jobs.append(job)
    (folder / "cases.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("lvis_oracle.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "cases.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def percent(values) -> list[float]:
    """The lvis package says -1 where there is nothing to measure; we say NaN."""
    return [value * 100 if value > -1 else math.nan for value in values]


def assert_same(metrics, answer) -> None:
    expected = percent(answer["results"][name] for name in METRICS)
    assert [metrics[name] for name in METRICS] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    ours = [metrics[f"AP-class {k}"] for k in range(len(answer["class_ap"]))]
    assert ours == pytest.approx(percent(answer["class_ap"]), abs=1e-9, nan_ok=True)


def test_equals_the_lvis_package(tmp_path, monkeypatch):
    cases, ours = [], []
    for seed in range(6):
        content = random_content(seed, federated=True, images=16)
        predictions = random_predictions(content, seed + 50, masks=True, extra=12)
        max_dets = 6 if seed % 2 else 300
        with registered(tmp_path, content, f"made_{seed}") as name, monkeypatch.context() as patch:
            patch.delattr(np, "float", raising=False)  # as on detectron2 main
            results = run(LvisEvaluator(name, max_dets_per_image=max_dets), predictions)
        for task in ("bbox", "segm"):
            cases.append((content, predictions, task, max_dets))
            ours.append(results[task])
    answers = lvis_package(tmp_path, cases)
    for metrics, answer in zip(ours, answers, strict=True):
        assert_same(metrics, answer)
    assert all(1 < metrics["AP"] < 99 for metrics in ours)
    assert len({metrics["APr"] for metrics in ours}) == len(ours)


def test_image_without_negatives_field_is_annotated_for_all_classes(tmp_path):
    bare = random_content(7)
    full = copy.deepcopy(bare)
    ids = [category["id"] for category in bare["categories"]]
    for image in full["images"]:
        image |= {"neg_category_ids": ids, "not_exhaustive_category_ids": []}
    for category in full["categories"]:
        category["frequency"] = "f"
    predictions = random_predictions(bare, 8)
    with registered(tmp_path, bare) as name:
        metrics = run(LvisEvaluator(name), predictions)["bbox"]
        as_coco = run(CocoEvaluator(name), predictions)["bbox"]
    answer = lvis_package(tmp_path, [(full, predictions, "bbox", 300)])[0]
    answer["results"] |= {"APr": -1, "APc": -1, "APf": -1}  # no frequency in our file
    assert_same(metrics, answer)
    assert metrics["AP"] == pytest.approx(as_coco["AP"], abs=1e-9)


def test_unannotated_classes_are_not_punished(tmp_path):
    content = random_content(1, federated=True, images=1, classes=3)
    box = [10.0, 20.0, 50.0, 60.0]
    content["annotations"] = [{"id": 1, "image_id": 10, "category_id": 2, "bbox": box, "area": 9.0}]
    content["images"].append({"id": 11, "height": 160, "width": 160, "neg_category_ids": []})
    content["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    right = np.array([[10.0, 20, 60, 80]])
    wrong = np.array([[100.0, 100, 140, 140]])
    predictions = {
        10: make_instances(right, np.array([0.5]), [0]),
        11: make_instances(wrong, np.array([0.9]), [0]),  # scored higher, but nobody looked here
    }
    with registered(tmp_path, content) as name:
        assert run(LvisEvaluator(name), predictions)["bbox"]["AP"] == pytest.approx(100)
    content["images"][1]["neg_category_ids"] = [2]
    with registered(tmp_path, content) as name:
        assert run(LvisEvaluator(name), predictions)["bbox"]["AP"] == pytest.approx(50)
    content["images"][1]["not_exhaustive_category_ids"] = [2]
    with registered(tmp_path, content) as name:
        assert run(LvisEvaluator(name), predictions)["bbox"]["AP"] == pytest.approx(100)


def test_perfect_and_empty_predictions(tmp_path):
    content = random_content(3, federated=True)
    nothing = {
        image["id"]: make_instances(np.zeros((0, 4)), np.zeros(0), [], masks=True)
        for image in content["images"]
    }
    with registered(tmp_path, content) as name:
        perfect = run(LvisEvaluator(name), perfect_predictions(content, masks=True))
        empty = run(LvisEvaluator(name), nothing)
    for task in ("bbox", "segm"):
        assert perfect[task]["AP"] == pytest.approx(100)
        assert perfect[task]["APr"] == pytest.approx(100)
        assert empty[task]["AP"] == empty[task]["APr"] == 0
        assert math.isnan(empty[task]["AP-class 5"])  # has no objects


def test_boxes_only_without_masks(tmp_path):
    content = random_content(3, federated=True)
    with registered(tmp_path, content) as name:
        assert list(run(LvisEvaluator(name), perfect_predictions(content))) == ["bbox"]


def test_groups_are_means_of_their_classes(tmp_path):
    content = random_content(4, federated=True)
    predictions = random_predictions(content, 5)
    groups = {"base": ["class 0", "class 4", "class 5"], "novel": ["class 2"]}
    with registered(tmp_path, content, class_groups=groups) as name:
        metrics = run(LvisEvaluator(name), predictions)["bbox"]
    answer = lvis_package(tmp_path, [(content, predictions, "bbox", 300)])[0]
    ap50 = percent(answer["class_ap50"])
    assert metrics["AP-group-base"] == pytest.approx(
        (metrics["AP-class 0"] + metrics["AP-class 4"]) / 2
    )
    assert metrics["AP50-group-base"] == pytest.approx((ap50[0] + ap50[4]) / 2)
    assert metrics["AP-group-novel"] == pytest.approx(metrics["AP-class 2"])
    assert metrics["AP50-group-novel"] == pytest.approx(ap50[2])


def test_detectron2_lvis_v1_metadata(tmp_path):
    content = random_content(4, federated=True)
    content["categories"] = [
        {"id": key, "name": f"n{key}", "frequency": "r"} for key in range(1, 1204)
    ]
    for ann in content["annotations"]:
        ann["category_id"] = 1203 if ann["category_id"] == 2 else 1
    for image in content["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    meta = get_lvis_instances_meta("lvis_v1_made")
    with registered(tmp_path, content, "lvis_v1_made", **meta) as name:
        evaluator = LvisEvaluator(name, output_dir=str(tmp_path / "out"))
        metrics = run(evaluator, perfect_predictions(content))["bbox"]
    assert metrics["AP-zucchini"] == metrics["APr"] == pytest.approx(100)
    assert math.isnan(metrics["APf"])
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert {record["category_id"] for record in written} == {1, 1203}
