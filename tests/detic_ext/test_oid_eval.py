"""OpenImages AP50: recorded numbers, a loop twin, and the rules one by one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

import detic_ext.evaluation  # noqa: F401 - registers "oid"
from detic_ext.evaluation.oid import OidEvaluator
from detic_ext.evaluation.oid_hierarchy import HIERARCHY_FILE, ancestors_by_id, read_hierarchy
from detic_ext.evaluation.oid_metric import envelope_area, match_image, oid_average_precision
from ext_common.config import get_config
from ext_common.errors import DatasetError
from ext_common.evaluation import build_evaluator
from ext_common.evaluation.ground_truth import load_ground_truth
from tests.golden_cases import golden_root


@pytest.fixture(scope="module")
def golden():
    return json.loads((golden_root() / "detic" / "oid_eval.json").read_text())


@pytest.fixture
def register(tmp_path):
    """Puts annotations on disk under a dataset's name, with evaluator_type "oid"."""
    names = []

    def make(content, hierarchy=None, **metadata):
        name = f"made_oid_{len(names)}"
        names.append(name)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "truth.json").write_text(json.dumps(content))
        if hierarchy is not None:
            (folder / HIERARCHY_FILE).write_text(json.dumps(hierarchy))
        register_coco_instances(name, {}, str(folder / "truth.json"), str(folder))
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(
            json_file=str(folder / "truth.json"), evaluator_type="oid", **metadata
        )
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def labels(content):
    return {category["freebase_id"]: category["id"] for category in content["categories"]}


def number(value) -> float:
    return math.nan if value is None or value < 0 else value


@pytest.mark.golden
@pytest.mark.parametrize(("kind", "metric"), [("plain", "AP50"), ("expand", "AP50_expand")])
def test_golden_oid_eval(golden, register, kind, metric):
    truth = load_ground_truth(register(golden["gt"]))
    ancestors = None
    if kind == "expand":
        ancestors = ancestors_by_id(golden["hierarchy"], labels(golden["gt"]))
    ap_K = oid_average_precision(
        truth, golden["dets"], ancestors=ancestors, reproduce_order_bug=True
    )
    expected = [number(value) for value in golden["expected"][f"per_cat_{kind}"]]
    assert ap_K == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.nanmean(ap_K) == pytest.approx(golden["expected"][metric], abs=1e-9)


def predictions_of(content, dets) -> dict[int, Instances]:
    """The recorded detections as a model's output: class indices instead of ids."""
    index = {key: i for i, key in enumerate(sorted(c["id"] for c in content["categories"]))}
    outputs = {}
    for image in content["images"]:
        found = [det for det in dets if det["image_id"] == image["id"]]
        boxes_D4 = torch.tensor([det["bbox"] for det in found], dtype=torch.float64).reshape(-1, 4)
        boxes_D4[:, 2:] += boxes_D4[:, :2]
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.zeros(0, 4))
        instances.pred_boxes.tensor = boxes_D4  # Boxes would round to float32
        instances.scores = torch.tensor([det["score"] for det in found], dtype=torch.float64)
        instances.pred_classes = torch.tensor(
            [index[det["category_id"]] for det in found], dtype=torch.int64
        )
        outputs[image["id"]] = instances
    return outputs


def run(evaluator, predictions):
    evaluator.reset()
    for key, found in predictions.items():
        evaluator.process([{"image_id": key}], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.golden
def test_golden_oid_order_bug_needs_unsorted_detections(golden, register):
    truth = load_ground_truth(register(golden["gt"]))
    dets = sorted(golden["dets"], key=lambda det: -det["score"])
    right = oid_average_precision(truth, dets)
    assert oid_average_precision(truth, dets, reproduce_order_bug=True) == pytest.approx(
        right, abs=1e-12, nan_ok=True
    )
    assert oid_average_precision(truth, golden["dets"]) == pytest.approx(
        right, abs=1e-12, nan_ok=True
    )


def test_evaluator_reports_the_metric_in_percent(golden, register, tmp_path):
    content, dets = golden["gt"], golden["dets"]
    names = [category["name"] for category in content["categories"]]
    name = register(content, golden["hierarchy"], class_groups={"first": names[:1]})
    cfg = get_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    results = run(build_evaluator(cfg, name), predictions_of(content, dets))
    truth, ancestors = (
        load_ground_truth(name),
        ancestors_by_id(golden["hierarchy"], labels(content)),
    )
    plain_K = 100 * oid_average_precision(truth, dets)
    expanded_K = 100 * oid_average_precision(truth, dets, ancestors=ancestors)
    expected = {"AP50": np.nanmean(plain_K), "AP50_expand": np.nanmean(expanded_K)}
    expected["AP50-group-first"] = expanded_K[0]
    expected |= {f"AP50-{name}": value for name, value in zip(names, expanded_K, strict=True)}
    assert list(results) == ["bbox"]
    assert results["bbox"] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert (tmp_path / f"inference_{name}" / "oid_instances_results.json").is_file()


def test_only_the_best_300_of_an_image_count(register):
    content = {
        "images": [{"id": 1, "width": 50, "height": 50}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bowl"}],
    }
    right = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "score": 0.1}
    others = [right | {"category_id": 1, "score": 0.2 + i / 1000} for i in range(300)]
    truth = load_ground_truth(register(content))
    assert oid_average_precision(truth, [right, *others])[1] == 0
    assert oid_average_precision(truth, [right, *others[1:]])[1] == 1


def test_no_hierarchy_no_expanded_number(golden, register, caplog):
    name = register(golden["gt"])
    results = run(OidEvaluator(name), predictions_of(golden["gt"], golden["dets"]))
    assert "AP50_expand" not in results["bbox"]
    assert "AP50_expand is left out" in caplog.text


def test_named_hierarchy_must_exist(golden, register, tmp_path):
    name = register(golden["gt"], hierarchy_file=str(tmp_path / "none.json"))
    with pytest.raises(DatasetError, match=r"none.json.*cannot be read"):
        OidEvaluator(name)
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DatasetError, match="no LabelName"):
        read_hierarchy(tmp_path / "none.json")


def test_ancestors_over_several_parents_and_unlabelled_nodes():
    leaf = {"LabelName": "leaf"}
    hierarchy = {
        "LabelName": "root",
        "Subcategory": [
            {"LabelName": "a", "Subcategory": [{"LabelName": "b", "Subcategory": [leaf]}]},
            {"LabelName": "c", "Subcategory": [leaf]},
        ],
    }
    ids = {"a": 1, "b": 2, "c": 3, "leaf": 4}
    assert ancestors_by_id(hierarchy, ids) == {1: (), 2: (1,), 3: (), 4: (2, 1, 3)}


def box(x, y, w, h, *, crowd=0, score=0.0):
    return {"bbox": [x, y, w, h], "iscrowd": crowd, "score": score}


def test_second_detection_of_an_object_is_wrong():
    found = [box(0, 0, 10, 10, score=0.9), box(0, 0, 10, 10, score=0.8)]
    scores, right = match_image([box(0, 0, 10, 10)], found, {})
    assert (scores.tolist(), right.tolist()) == ([0.9, 0.8], [True, False])


def test_detection_does_not_fall_back_to_its_second_best_object():
    objects = [box(0, 0, 10, 10), box(2, 0, 10, 10)]
    found = [box(0, 0, 10, 10, score=0.9), box(0, 0, 10, 10, score=0.8)]
    assert match_image(objects, found, {})[1].tolist() == [True, False]


def test_group_box_absorbs_what_lies_in_it():
    objects = [box(0, 0, 100, 100, crowd=1), box(200, 0, 10, 10)]
    found = [
        box(200, 0, 10, 10, score=0.9),
        box(10, 10, 10, 10, score=0.7),
        box(95, 0, 10, 10, score=0.6),  # exactly half inside
        box(96, 0, 10, 10, score=0.5),  # less than half
    ]
    scores, right = match_image(objects, found, {})
    assert scores.tolist() == [0.9, 0.5, 0.7]
    assert right.tolist() == [True, False, True]


def test_area_under_the_envelope():
    scores, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    # precision 1 up to recall 1/4, 2/3 up to 2/4, then never reached
    assert envelope_area([(scores, right)], 4) == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert math.isnan(envelope_area([], 0))
    assert envelope_area([(np.zeros(0), np.zeros(0, dtype=bool))], 3) == 0


def test_classes_that_nobody_checked_are_not_scored(register):
    content = {
        "images": [
            {"id": 1, "width": 50, "height": 50, "pos_category_ids": [1], "neg_category_ids": []},
            {"id": 2, "width": 50, "height": 50, "pos_category_ids": [], "neg_category_ids": []},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81}
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bowl"}],
    }
    dets = [
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5},
    ]
    truth = load_ground_truth(register(content))
    assert oid_average_precision(truth, dets) == pytest.approx([1, math.nan], nan_ok=True)
    content["images"][1]["neg_category_ids"] = [1]
    truth = load_ground_truth(register(content))
    assert oid_average_precision(truth, dets)[0] == pytest.approx(0.5)


def test_masks_instead_of_boxes(register):
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    content = {
        "images": [{"id": 1, "width": 20, "height": 20, "pos_category_ids": [1]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 10, 10],
                "area": 100,
                "segmentation": square,
            }
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    found = Instances((20, 20))
    found.pred_boxes = Boxes(torch.tensor([[12.0, 12, 18, 18]]))  # wrong box, right mask
    found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    found.pred_masks = torch.zeros(1, 20, 20, dtype=torch.bool)
    found.pred_masks[:, :10, :10] = True
    results = run(OidEvaluator(register(content)), {1: found})
    assert results == {"segm": {"AP50_segm": pytest.approx(100), "AP50-cup": pytest.approx(100)}}
    assert run(OidEvaluator(register(content), ["bbox"]), {1: found})["bbox"]["AP50"] == 0


def loops(objects, found):
    """The rules of one class in one image as loops over dictionaries."""

    def overlap(a, b):
        (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
        w = max(0.0, min(ax + aw, bx + bw) - max(ax, bx))
        h = max(0.0, min(ay + ah, by + bh) - max(ay, by))
        return w * h

    def iou(a, b):
        inter = overlap(a, b)
        return inter / (a["bbox"][2] * a["bbox"][3] + b["bbox"][2] * b["bbox"][3] - inter)

    entries, left, taken, groups = [], [], set(), {}
    single = [o for o in objects if not o["iscrowd"]]
    for det in found:
        best = max(range(len(single)), key=lambda g: iou(det, single[g]), default=None)
        if best is not None and iou(det, single[best]) >= 0.5 and best not in taken:
            taken.add(best)
            entries.append((det["score"], True))
        else:
            left.append(det)
    crowd = [o for o in objects if o["iscrowd"]]
    for det in left:
        area = det["bbox"][2] * det["bbox"][3]
        best = max(range(len(crowd)), key=lambda g: overlap(det, crowd[g]), default=None)
        if best is not None and overlap(det, crowd[best]) / area >= 0.5:
            groups[best] = max(groups.get(best, 0.0), det["score"])
        else:
            entries.append((det["score"], False))
    return sorted(entries + [(score, True) for score in groups.values()])


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_loops(seed):
    rng = np.random.default_rng(seed)
    objects = [
        box(*rng.uniform(0, 40, 2), *rng.uniform(5, 40, 2), crowd=int(rng.random() < 0.3))
        for _ in range(rng.integers(0, 7))
    ]
    found = [
        box(*rng.uniform(0, 40, 2), *rng.uniform(5, 40, 2), score=rng.random()) for _ in range(12)
    ]
    for real in objects:  # some good ones
        shaken = np.array(real["bbox"]) + rng.normal(0, 1.5, 4)
        found.append(box(*np.maximum(shaken, 1), score=rng.random()))
    scores, right = match_image(objects, found, {})
    found.sort(key=lambda det: -det["score"])
    assert sorted(zip(scores.tolist(), right.tolist(), strict=True)) == loops(objects, found)
