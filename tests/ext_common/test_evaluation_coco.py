"""COCO AP against pycocotools and detectron2, class groups, and the edges."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ext_common.errors import DatasetError
from ext_common.evaluation.coco import CocoEvaluator
from tests.ext_common.evaluation_cases import (
    coco_records,
    make_instances,
    perfect_predictions,
    random_content,
    random_predictions,
    registered,
    run,
)

BACKENDS = pytest.mark.parametrize("eval_class", [COCOeval, COCOeval_faster])
STANDARD = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def oracle(path, records, task) -> COCOeval:
    """pycocotools as its documentation uses it."""
    truth = COCO(str(path))
    records = copy.deepcopy(records)
    if task == "segm":
        for record in records:
            del record["bbox"]  # else the box area decides about small, medium, large
    evaluation = COCOeval(truth, truth.loadRes(records), task)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@BACKENDS
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(tmp_path, eval_class, seed):
    content = random_content(seed, crowds=True)
    predictions = random_predictions(content, seed + 100, masks=True)
    with registered(tmp_path, content) as name:
        results = run(CocoEvaluator(name, eval_class=eval_class), predictions)
    assert list(results) == ["bbox", "segm"]
    for task, metrics in results.items():
        expected = oracle(tmp_path / "made.json", coco_records(content, predictions), task)
        stats = [value * 100 if value >= 0 else math.nan for value in expected.stats[:6]]
        assert [metrics[key] for key in STANDARD] == pytest.approx(stats, abs=1e-9, nan_ok=True)
        precision_TRK = expected.eval["precision"][..., 0, -1]
        for k in range(5):
            ap = precision_TRK[:, :, k].mean() * 100
            assert metrics[f"AP-class {k}"] == pytest.approx(ap, abs=1e-9)
        assert 1 < metrics["AP"] < 99
        assert math.isnan(metrics["AP-class 5"])


def test_equals_detectron2(tmp_path):
    content = random_content(5, crowds=True)
    predictions = random_predictions(content, 6, masks=True)
    with registered(tmp_path, content) as name:
        DatasetCatalog.get(name)  # detectron2's evaluator needs the id map that loading sets
        ours = run(CocoEvaluator(name), predictions)
        theirs = run(COCOEvaluator(name, use_fast_impl=False), predictions)
    assert set(ours) == set(theirs)
    for task in ours:
        assert ours[task] == pytest.approx(theirs[task], abs=1e-9, nan_ok=True)
        assert list(ours[task]) == list(theirs[task])


@BACKENDS
def test_perfect_predictions(tmp_path, eval_class):
    content = random_content(1)
    with registered(tmp_path, content) as name:
        results = run(
            CocoEvaluator(name, eval_class=eval_class), perfect_predictions(content, masks=True)
        )
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AP50"] == pytest.approx(100)


@BACKENDS
def test_nothing_detected_is_zero(tmp_path, eval_class):
    content = random_content(1)
    nothing = {
        image["id"]: make_instances(np.zeros((0, 4)), np.zeros(0), [], masks=True)
        for image in content["images"]
    }
    groups = {"some": ["class 0", "class 1"], "without objects": ["class 5"]}
    with registered(tmp_path, content, class_groups=groups) as name:
        results = run(CocoEvaluator(name, eval_class=eval_class), nothing)
    assert set(results) == {"bbox", "segm"}
    for metrics in results.values():
        assert metrics["AP"] == metrics["AP50"] == metrics["AP-class 0"] == 0
        assert metrics["AP-group-some"] == metrics["AP50-group-some"] == 0
        assert math.isnan(metrics["AP-class 5"])
        assert math.isnan(metrics["AP-group-without objects"])


def test_no_image_processed_gives_no_results(tmp_path, caplog):
    with registered(tmp_path, random_content(1)) as name:
        evaluator = CocoEvaluator(name)
        evaluator.reset()
        assert evaluator.evaluate() == {}
    assert "no predictions" in caplog.text


def test_groups_are_means_of_their_classes(tmp_path):
    content = random_content(2)
    predictions = random_predictions(content, 3)
    groups = {"base": ["class 0", "class 3", "class 5"], "novel": ["class 1", "class 2"]}
    with registered(tmp_path, content, class_groups=groups) as name:
        metrics = run(CocoEvaluator(name), predictions)["bbox"]
    expected = oracle(tmp_path / "made.json", coco_records(content, predictions), "bbox")
    precision_TRK = expected.eval["precision"][..., 0, -1]
    for group, classes in {"base": [0, 3], "novel": [1, 2]}.items():  # class 5 has no objects
        ap = np.mean([metrics[f"AP-class {k}"] for k in classes])
        ap50 = np.mean([precision_TRK[0, :, k].mean() * 100 for k in classes])
        assert metrics[f"AP-group-{group}"] == pytest.approx(ap, abs=1e-9)
        assert metrics[f"AP50-group-{group}"] == pytest.approx(ap50, abs=1e-9)
    assert metrics["AP-group-base"] != metrics["AP-group-novel"]


def test_annotation_id_zero_counts_as_matched(tmp_path):
    content = random_content(1, images=1, classes=2)
    box = [10.0, 20.0, 50.0, 60.0]
    ann = {"id": 0, "image_id": 10, "category_id": 2, "bbox": box, "area": 3000, "iscrowd": 0}
    content["annotations"] = [ann]
    with registered(tmp_path, content) as name:
        metrics = run(CocoEvaluator(name), perfect_predictions(content))["bbox"]
    assert metrics["AP"] == pytest.approx(100)


def test_lvis_style_file_without_crowd_and_area(tmp_path):
    content = random_content(1)
    for ann in content["annotations"]:
        del ann["iscrowd"], ann["area"]
    with registered(tmp_path, content) as name:
        metrics = run(CocoEvaluator(name), perfect_predictions(content))["bbox"]
    assert metrics["AP"] == pytest.approx(100)


def test_detections_per_image_limit(tmp_path):
    content = random_content(1)
    predictions = random_predictions(content, 4)
    with registered(tmp_path, content) as name:
        one = run(CocoEvaluator(name, max_dets_per_image=1), predictions)["bbox"]
        many = run(CocoEvaluator(name), predictions)["bbox"]
    kept = {}
    for key, found in predictions.items():
        order = found.scores.argsort(descending=True, stable=True)
        seen, rows = set(), []
        for row in order.tolist():
            if int(found.pred_classes[row]) not in seen:
                seen.add(int(found.pred_classes[row]))
                rows.append(row)
        kept[key] = found[rows]
    with registered(tmp_path, content) as name:
        assert one == pytest.approx(run(CocoEvaluator(name), kept)["bbox"], abs=1e-9, nan_ok=True)
    assert one["AP"] != many["AP"]


def test_subset_of_images(tmp_path):
    content = random_content(3)
    predictions = random_predictions(content, 4)
    chosen = sorted(predictions)[:5]
    part = dict(content)
    part["images"] = [image for image in content["images"] if image["id"] in chosen]
    part["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    with registered(tmp_path, content) as name:
        evaluator = CocoEvaluator(name)
        run(evaluator, predictions)
        subset = evaluator.evaluate(img_ids=chosen)
    with registered(tmp_path, part, "part") as name:
        alone = run(CocoEvaluator(name), {key: predictions[key] for key in chosen})
    assert subset["bbox"] == pytest.approx(alone["bbox"], abs=1e-9, nan_ok=True)


def test_detectron2_builtin_coco_metadata(tmp_path):
    meta = _get_builtin_metadata("coco")
    content = random_content(1, classes=3)
    content["categories"] = [
        {"id": key, "name": str(key)} for key in meta["thing_dataset_id_to_contiguous_id"]
    ]
    for ann in content["annotations"]:
        ann["category_id"] = 90  # the last of 80 classes: index 79, name toothbrush
    with registered(tmp_path, content, "made_coco_2017", **meta) as name:
        metrics = run(CocoEvaluator(name), perfect_predictions(content))["bbox"]
    assert metrics["AP-toothbrush"] == pytest.approx(100)
    assert math.isnan(metrics["AP-person"])


def test_dataset_without_a_file(tmp_path):
    name = "made_records"
    record = {"image_id": 1, "file_name": "1.jpg", "height": 160, "width": 160}
    objects = [
        {"bbox": [5, 5, 60, 70], "bbox_mode": BoxMode.XYXY_ABS, "category_id": k} for k in (0, 1)
    ]
    DatasetCatalog.register(name, lambda: [record | {"annotations": objects}])
    MetadataCatalog.get(name).set(thing_classes=["cup", "bowl"], class_groups={"a": ["cup"]})
    try:
        found = make_instances(np.array([[5.0, 5, 60, 70]]), np.ones(1), [0])
        metrics = run(CocoEvaluator(name), {1: found})["bbox"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert metrics["AP-cup"] == metrics["AP-group-a"] == pytest.approx(100)
    assert metrics["AP-bowl"] == 0


def test_masks_are_left_out_where_the_dataset_has_none(tmp_path, caplog):
    content = random_content(1)
    for ann in content["annotations"]:
        del ann["segmentation"]
    with registered(tmp_path, content) as name:
        results = run(CocoEvaluator(name), random_predictions(content, 1, masks=True))
    assert list(results) == ["bbox"]
    assert "masks are not scored" in caplog.text


def test_masks_asked_for_where_the_dataset_has_none(tmp_path):
    content = random_content(1)
    del content["annotations"][0]["segmentation"]
    with (
        registered(tmp_path, content) as name,
        pytest.raises(DatasetError, match="without a segmentation"),
    ):
        CocoEvaluator(name, tasks=["bbox", "segm"])


def test_test_set_without_annotations_writes_the_predictions(tmp_path):
    content = random_content(1)
    predictions = random_predictions(content, 2)
    expected = coco_records(content, predictions)
    del content["annotations"]
    with registered(tmp_path, content) as name:
        assert run(CocoEvaluator(name, output_dir=str(tmp_path / "out")), predictions) == {}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert [r["category_id"] for r in written] == [r["category_id"] for r in expected]
    assert [r["bbox"] for r in written] == [pytest.approx(r["bbox"]) for r in expected]


def test_image_seen_twice_counts_once(tmp_path):
    content = random_content(1)
    predictions = random_predictions(content, 2)
    with registered(tmp_path, content) as name:
        once = run(CocoEvaluator(name), predictions)
        evaluator = CocoEvaluator(name)
        for key, found in [*predictions.items(), *predictions.items()]:
            evaluator.process([{"image_id": key}], [{"instances": found}])
        assert evaluator.evaluate()["bbox"] == pytest.approx(once["bbox"], nan_ok=True)


@pytest.mark.parametrize(
    ("image_id", "class_index", "message"),
    [(999, 0, "unknown image 999"), (10, 6, "predicted class 6, but there are 6 classes")],
)
def test_predictions_that_do_not_fit(tmp_path, image_id, class_index, message):
    found = make_instances(np.array([[0.0, 0, 9, 9]]), np.ones(1), [class_index])
    with registered(tmp_path, random_content(1)) as name:
        evaluator = CocoEvaluator(name)
        with pytest.raises(DatasetError, match=message):
            evaluator.process([{"image_id": image_id}], [{"instances": found}])


@pytest.mark.parametrize(
    ("groups", "message"),
    [({"novel": ["class 1", "clas 2"]}, "unknown class 'clas 2'"), ({"novel": []}, "no classes")],
)
def test_bad_class_group(tmp_path, groups, message):
    content = random_content(1)
    with (
        registered(tmp_path, content, class_groups=groups) as name,
        pytest.raises(DatasetError, match=message) as caught,
    ):
        CocoEvaluator(name)
    assert "novel" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=555), "unknown image 555"),
        (lambda c: c["annotations"][0].pop("bbox"), "without the field 'bbox'"),
        (lambda c: c.pop("categories"), "no list 'categories'"),
    ],
)
def test_bad_annotation_files(tmp_path, change, message):
    content = random_content(1)
    change(content)
    with (
        registered(tmp_path, content) as name,
        pytest.raises(DatasetError, match=message) as caught,
    ):
        CocoEvaluator(name)
    assert "made.json" in str(caught.value)


def test_unreadable_annotation_files(tmp_path):
    with registered(tmp_path, random_content(1)) as name:
        path = tmp_path / "made.json"
        path.write_text('{"images": [')
        with pytest.raises(DatasetError, match=r"made.json.*line 1, column 13"):
            CocoEvaluator(name)
        path.unlink()
        with pytest.raises(DatasetError, match=r"made.json.*cannot be read"):
            CocoEvaluator(name)
        path.write_text("[]")
        with pytest.raises(DatasetError, match="the top level is a list"):
            CocoEvaluator(name)
