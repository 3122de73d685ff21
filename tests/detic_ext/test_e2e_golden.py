"""Complete small models against the authors' numbers (e2e_c2, e2e_c4): detections and training.

Tolerances are those of the golden set's README.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ext_common.vocabulary import Vocabulary
from tests.detic_ext.e2e_cases import E2ECase
from tests.golden_cases import golden_arrays

CASES = ("e2e_c2", "e2e_c4")
BOX_TOLERANCE = {"e2e_c2": 0.05, "e2e_c4": 0.1}

pytestmark = pytest.mark.golden


def tags(name: str) -> list[str]:
    """Loss tags that a file has."""
    keys = golden_arrays("detic", f"{name}.npz")
    return [found[1] for key in keys if (found := re.fullmatch(r"loss_(.+)_names", key))]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> E2ECase:
    return E2ECase(request.param, tmp_path)


def propose(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Any, Any]:
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    return features, proposals, images


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_golden_features_and_proposals(case: E2ECase) -> None:
    model = case.model().eval()
    with torch.no_grad():
        features, proposals, images = propose(model, case.test_batch())
    assert images.tensor.shape == tuple(case.arrays["batch_tensor_shape"].tolist())
    names = [key.removeprefix("feat/") for key in case.arrays if key.startswith("feat/")]
    assert names
    for name in names:
        np.testing.assert_allclose(
            features[name], case.arrays[f"feat/{name}"], rtol=1e-3, atol=1e-4
        )
    for i, found in enumerate(proposals):
        boxes = torch.from_numpy(case.arrays[f"proposal_boxes_{i}"])
        scores = torch.from_numpy(case.arrays[f"proposal_logits_{i}"])
        pairs = matched(found.proposal_boxes.tensor, boxes, found.objectness_logits, scores)
        difference = (found.proposal_boxes.tensor[pairs] - boxes).abs().max()
        assert float(difference) < BOX_TOLERANCE[case.name]
        torch.testing.assert_close(found.objectness_logits[pairs], scores, rtol=1e-3, atol=1e-3)


def matched(
    boxes: Tensor,
    wanted: Tensor,
    scores: Tensor,
    wanted_scores: Tensor,
    classes: Tensor | None = None,
    wanted_classes: Tensor | None = None,
) -> Tensor:
    """For each wanted box the row of the one that fits best: class, then IoU, then score."""
    assert len(boxes) == len(wanted)
    fit = pairwise_iou(Boxes(wanted), Boxes(boxes)) - (wanted_scores[:, None] - scores).abs()
    if classes is not None and wanted_classes is not None:
        fit = fit - 10.0 * (wanted_classes[:, None] != classes)
    rows, columns = linear_sum_assignment(fit.numpy(), maximize=True)
    assert rows.tolist() == list(range(len(wanted)))
    return torch.from_numpy(columns)


def check_detections(case: E2ECase, found: list[Instances], prefix: str) -> list[Tensor]:
    """Compare boxes, scores and classes; the row of each expected detection, per image."""
    matches = []
    for i, instances in enumerate(found):
        boxes, scores, classes = (
            torch.from_numpy(case.arrays[f"{prefix}_{name}_{i}"])
            for name in ("boxes", "scores", "classes")
        )
        height, width = case.arrays["output_sizes"][i].tolist()
        assert instances.image_size == (height, width)
        pairs = matched(
            instances.pred_boxes.tensor, boxes, instances.scores, scores,
            instances.pred_classes, classes,
        )  # fmt: skip
        assert torch.equal(instances.pred_classes[pairs], classes)
        torch.testing.assert_close(instances.scores[pairs], scores, rtol=0, atol=1e-3)
        difference = (instances.pred_boxes.tensor[pairs] - boxes).abs().max()
        assert float(difference) < BOX_TOLERANCE[case.name]
        matches.append(pairs)
    return matches


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_golden_detections(case: E2ECase) -> None:
    model = case.model().eval()
    with torch.no_grad():
        found = [result["instances"] for result in model(case.test_batch())]
    matches = check_detections(case, found, "det")
    for i, (instances, pairs) in enumerate(zip(found, matches, strict=True)):
        if f"det_mask_bits_{i}" not in case.arrays:
            assert not instances.has("pred_masks")
            continue
        shape = case.arrays[f"det_mask_shape_{i}"]
        bits = np.unpackbits(case.arrays[f"det_mask_bits_{i}"], count=int(shape.prod()))
        wanted = bits.reshape(shape).astype(bool)
        masks = instances.pred_masks[pairs].numpy()
        area = case.arrays[f"det_mask_area_{i}"]
        np.testing.assert_array_equal(wanted.sum(axis=(1, 2)), area)
        assert (np.abs(masks.sum(axis=(1, 2)) - area) <= 0.02 * area + 3).all()
        assert ((masks != wanted).sum(axis=(1, 2)) <= 0.02 * area + 3).all()


@pytest.mark.parametrize("case", ["e2e_c2"], indirect=True)
def test_golden_one_class_per_proposal(case: E2ECase) -> None:
    model = case.model("MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL", True).eval()
    with torch.no_grad():
        found = [result["instances"] for result in model(case.test_batch())]
    check_detections(case, found, "one_det")


@pytest.mark.parametrize("case", ["e2e_c2"], indirect=True)
def test_golden_other_vocabulary(case: E2ECase) -> None:
    model = case.model().eval()
    rows = torch.from_numpy(case.arrays["new_vocab_file"])
    names = [f"class {row}" for row in range(len(rows))]
    vocabulary = Vocabulary.from_embeddings(names, rows, "")
    with torch.no_grad():
        classifier = model.prepare_vocabulary(vocabulary)
        results = model(case.test_batch(), classifier=classifier)
    check_detections(case, [result["instances"] for result in results], "vocab_det")


@pytest.mark.parametrize(
    ("case", "tag"),
    [(name, tag) for name in CASES for tag in tags(name)],
    indirect=["case"],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_golden_training_step(case: E2ECase, tag: str) -> None:
    model = case.training_model(tag)
    with EventStorage(0):
        losses: dict[str, Tensor] = model(case.train_batch(tag))
    expected = recorded(case, f"loss_{tag}")
    assert set(expected) <= set(losses)
    for name, value in losses.items():
        # batches of proposals lack the names of other losses in the original
        wanted = expected.get(name, 0.0)
        np.testing.assert_allclose(float(value.detach()), wanted, rtol=1e-3, atol=1e-6)

    sum(losses.values()).backward()
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
    }
    expected = recorded(case, f"gradnorm_{tag}")
    assert set(expected) <= set(norms)
    wrong = {
        name: (value, expected.get(name, 0.0))
        for name, value in norms.items()
        if abs(value - expected.get(name, 0.0)) > 1e-2 * max(expected.get(name, 0.0), 1e-4)
    }
    assert not wrong


def recorded(case: E2ECase, prefix: str) -> dict[str, float]:
    names = case.arrays[f"{prefix}_names"].tolist()
    return dict(zip(names, case.arrays[f"{prefix}_values"].tolist(), strict=True))
