"""Average recall against pycocotools without categories, and recall of class groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ext_common.evaluation.proposal_recall import ProposalRecallEvaluator
from tests.ext_common.evaluation_cases import (
    SIDE,
    coco_records,
    make_instances,
    perfect_predictions,
    random_content,
    random_predictions,
    registered,
    run,
)


def proposals(instances: Instances) -> Instances:
    """Detections as a proposal generator gives them, unsorted."""
    found = Instances((SIDE, SIDE))
    found.proposal_boxes = instances.pred_boxes
    found.objectness_logits = instances.scores
    return found


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_without_categories(tmp_path, seed):
    content = random_content(seed)
    predictions = random_predictions(content, seed + 1, extra=10)
    with registered(tmp_path, content) as name:
        results = run(ProposalRecallEvaluator(name, limits=(3, 100)), predictions)
        truth = COCO(str(tmp_path / "made.json"))
    evaluation = COCOeval(truth, truth.loadRes(coco_records(content, predictions)), "bbox")
    evaluation.params.useCats = 0
    evaluation.params.maxDets = [3, 100]
    evaluation.evaluate()
    evaluation.accumulate()
    recall_TAM = evaluation.eval["recall"][:, 0]
    metrics = results["box_proposals"]
    for m, limit in enumerate((3, 100)):
        for a, letter in enumerate(("", "s", "m", "l")):
            recall = recall_TAM[:, a, m].mean()
            expected = recall * 100 if recall >= 0 else math.nan
            ours = metrics[f"AR{letter}@{limit}"]
            assert ours == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert metrics[f"AR50@{limit}"] == pytest.approx(recall_TAM[0, 0, m] * 100, abs=1e-9)
    assert metrics["AR@3"] < metrics["AR@100"]


def test_groups_and_crowds(tmp_path):
    content = random_content(1, crowds=True)
    predictions = perfect_predictions(content)
    covered = {}
    for image_id, found in predictions.items():
        covered[image_id] = found[found.pred_classes != 2]
    groups = {"seen": ["class 0", "class 1"], "missed": ["class 2"], "no objects": ["class 5"]}
    with registered(tmp_path, content, class_groups=groups) as name:
        evaluator = ProposalRecallEvaluator(name)
        for image_id, found in covered.items():
            evaluator.process([{"image_id": image_id}], [{"proposals": proposals(found)}])
        metrics = evaluator.evaluate()["box_proposals"]
    assert metrics["AR@100-group-seen"] == metrics["AR50@1000-group-seen"] == pytest.approx(100)
    assert metrics["AR@100-group-missed"] < 20
    assert math.isnan(metrics["AR@1000-group-no objects"])
    kinds = [(a["category_id"], a["iscrowd"]) for a in content["annotations"]]
    assert any(crowd for _, crowd in kinds)
    missed = sum(kind == (8, 0) for kind in kinds) / sum(crowd == 0 for _, crowd in kinds)
    assert 100 * (1 - missed) <= metrics["AR@100"] < 100


def test_best_scored_boxes_count_first(tmp_path):
    content = random_content(1, images=1)
    box = {"id": 1, "image_id": 10, "category_id": 2, "bbox": [10, 10, 40, 40], "area": 1600}
    content["annotations"] = [box]
    found = Instances((SIDE, SIDE))
    found.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 50, 50], [90, 90, 120, 120]]))
    found.objectness_logits = torch.tensor([-2.0, 3.0])
    with registered(tmp_path, content) as name:
        evaluator = ProposalRecallEvaluator(name, limits=(1, 2))
        evaluator.process([{"image_id": 10}], [{"proposals": found}])
        metrics = evaluator.evaluate()["box_proposals"]
    assert (metrics["AR@1"], metrics["AR@2"]) == (0, 100)


def test_image_without_boxes_is_missed(tmp_path):
    content = random_content(2)
    empty = make_instances(np.zeros((0, 4)), np.zeros(0), [])
    with registered(tmp_path, content) as name:
        evaluator = ProposalRecallEvaluator(name)
        evaluator.process([{"image_id": 10}], [{"instances": empty}])
        assert evaluator.evaluate()["box_proposals"]["AR@100"] == 0
