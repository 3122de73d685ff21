"""Cascade inference and weak proposals against the authors' numbers (cascade_inference.npz)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from detic_ext.modeling.box_inference import InferenceOptions
from detic_ext.modeling.head_options import DeticHeadOptions
from detic_ext.modeling.roi_heads import DeticCascadeROIHeads
from detic_ext.modeling.weak_proposals import select_weak_proposals
from tests.golden_cases import golden_arrays

G = golden_arrays("detic", "cascade_inference.npz")
IMAGES = sum(1 for key in G if re.fullmatch(r"prop_boxes_\d+", key))
STAGES = len(G["bbox_reg_weights"])
SIZE = (int(G["image_size"][0]), int(G["image_size"][1]))
WEAK = sorted({found[1] for key in G if (found := re.match(r"top_boxes_f([\d.]+)_\d+", key))})

pytestmark = pytest.mark.golden


class RecordingPooler(nn.Module):
    """Keeps the boxes it is asked for; gives one row per box."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[Tensor]] = []

    def forward(self, maps: list[Tensor], boxes: list[Boxes]) -> Tensor:
        self.asked.append([found.tensor.clone() for found in boxes])
        return torch.zeros(sum(len(found) for found in boxes), 1)


class FixedPredictor(nn.Module):
    """The stored logits and deltas of one stage, whatever the boxes are."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.logits = torch.from_numpy(G[f"logits_stage{stage}"])
        self.deltas = torch.from_numpy(G[f"deltas_stage{stage}"])
        self.box2box_transform = Box2BoxTransform(weights=tuple(G["bbox_reg_weights"][stage]))

    def probabilities(self, features: Tensor, classifier: Tensor | None) -> Tensor:
        assert len(features) == len(self.logits)
        assert classifier is None
        return self.logits.sigmoid()

    def regress(self, features: Tensor) -> Tensor:
        return self.deltas


def proposals() -> list[Instances]:
    return [
        Instances(
            SIZE,
            proposal_boxes=Boxes(torch.from_numpy(G[f"prop_boxes_{i}"])),
            objectness_logits=torch.from_numpy(G[f"prop_scores_{i}"]),
            scores=torch.from_numpy(G[f"prop_scores_{i}"]),
        )
        for i in range(IMAGES)
    ]


def heads(*, multiply: bool, one_class: bool) -> DeticCascadeROIHeads:
    options = InferenceOptions(
        score_threshold=float(G["score_thresh"]),
        nms_threshold=float(G["nms_thresh"]),
        max_detections=int(G["topk"]),
        multiply_proposal_score=multiply,
        one_class_per_proposal=one_class,
    )
    return DeticCascadeROIHeads(
        num_classes=G["logits_stage0"].shape[1] - 1,
        batch_size_per_image=1,
        positive_fraction=1.0,
        box_in_features=["p3"],
        box_pooler=RecordingPooler(),
        box_heads=[nn.Identity() for _ in range(STAGES)],
        box_predictors=[FixedPredictor(stage) for stage in range(STAGES)],
        proposal_matchers=[Matcher([0.5], [0, 1])] * STAGES,
        options=DeticHeadOptions(inference=options),
    ).eval()


def detections(variant: str) -> tuple[list[Instances], DeticCascadeROIHeads]:
    model = heads(multiply=variant.startswith("mult"), one_class=variant.endswith("_one"))
    images = ImageList(torch.zeros(IMAGES, 3, *SIZE), [SIZE] * IMAGES)
    found, losses = model(images, {"p3": torch.zeros(IMAGES, 1, 1, 1)}, proposals())
    assert losses == {}
    return found, model


def check(found: Instances, prefix: str, image: int) -> None:
    expected = {name: G[f"{prefix}_{name}_{image}"] for name in ("boxes", "scores", "classes")}
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.pred_classes, expected["classes"])
    np.testing.assert_allclose(found.pred_boxes.tensor, expected["boxes"], atol=1e-3)


@pytest.mark.parametrize("variant", ["mult", "nomult", "mult_one"])
def test_golden_detections(variant: str) -> None:
    found, _ = detections(variant)
    for image in range(IMAGES):
        check(found[image], variant, image)


def test_golden_boxes_of_every_stage() -> None:
    _, model = detections("mult")
    pooler: Any = model.box_pooler
    assert len(pooler.asked) == STAGES
    for stage, boxes in enumerate(pooler.asked):
        for image in range(IMAGES):
            expected = G[f"stage{stage}_in_boxes_{image}"]
            np.testing.assert_allclose(boxes[image], expected, atol=1e-3)


def test_golden_postprocessing() -> None:
    found, _ = detections("mult")
    height, width = G["output_size"].tolist()
    for image in range(IMAGES):
        check(detector_postprocess(found[image], height, width), "post", image)


@pytest.mark.parametrize("share", WEAK)
def test_golden_weak_proposals(share: str) -> None:
    limit = max(len(G[f"top_boxes_f{share}_{image}"]) for image in range(IMAGES)) - 1
    chosen = select_weak_proposals(proposals(), limit=limit, image_box_share=float(share))
    for image in range(IMAGES):
        boxes, scores = G[f"top_boxes_f{share}_{image}"], G[f"top_logits_f{share}_{image}"]
        np.testing.assert_allclose(chosen[image].proposal_boxes.tensor, boxes, atol=1e-3)
        np.testing.assert_allclose(chosen[image].objectness_logits, scores, atol=1e-5)


def test_golden_cascade_has_weak_proposals() -> None:
    assert WEAK
