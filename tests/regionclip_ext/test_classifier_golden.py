"""Classifier, regressor and their losses against the authors' code and a 64-bit reference."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ext_common.errors import VocabularyError
from ext_common.vocabulary import Vocabulary
from regionclip_ext.modeling.focal_scaling import RegionClassificationLoss
from regionclip_ext.modeling.predictor import ClipPredictor, ClipPredictorOptions
from tests.regionclip_ext.golden_models import golden_parts


def named(emb_CD: torch.Tensor) -> Vocabulary:
    return Vocabulary.from_embeddings([f"c{i}" for i in range(len(emb_CD))], emb_CD, "")


def predictor(
    trained: torch.Tensor, tested: torch.Tensor | None = None, **more: object
) -> ClipPredictor:
    return ClipPredictor(
        dim=trained.shape[1],
        num_classes=len(trained),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        trained=named(trained),
        tested=None if tested is None else named(tested),
        **more,
    )


@pytest.mark.golden
def test_golden_classifier_and_losses() -> None:
    for get in golden_parts("classifier_and_losses.npz").values():
        background, gamma = float(get["bg_weight"]), float(get["gamma"])
        model = predictor(
            get["train_text_emb"],
            get["test_text_emb"],
            class_agnostic=get["bbox_pred.weight"].shape[0] == 4,
            options=ClipPredictorOptions(
                temperature=float(get["temp"]),
                background_weight=background if background >= 0 else None,
                focal_gamma=gamma if gamma >= 0 else None,
            ),
        )
        model.bbox_pred.load_state_dict(
            {"weight": get["bbox_pred.weight"], "bias": get["bbox_pred.bias"]}
        )
        x = get["x"].clone().requires_grad_()
        logits, deltas = model.train()(x)
        logits.retain_grad()
        torch.testing.assert_close(logits, get["logits_train"], atol=2e-3, rtol=0)
        torch.testing.assert_close(deltas, get["deltas"], atol=1e-5, rtol=1e-5)
        regions = Instances((1000, 1000))
        regions.proposal_boxes = Boxes(get["proposal_boxes"])
        regions.gt_boxes = Boxes(get["gt_boxes"])
        regions.gt_classes = get["gt_classes"]
        losses = model.losses((logits, deltas), [regions])
        for name in losses:
            torch.testing.assert_close(losses[name], get[name], rtol=1e-4, atol=0)
        torch.testing.assert_close(losses["loss_cls"], get["loss_cls_stable64"], rtol=1e-4, atol=0)
        losses["loss_cls"].backward()
        for ours, name in ((logits.grad, "grad_logits_stable64"), (x.grad, "grad_x_stable64")):
            golden = get[name]
            floor = 1e-3 * float(golden.abs().max())
            torch.testing.assert_close(ours, golden, rtol=1e-3, atol=floor)
        with torch.no_grad():
            logits, _ = model.eval()(x)
        torch.testing.assert_close(logits, get["logits_test"], atol=2e-3, rtol=0)
        torch.testing.assert_close(logits.softmax(1), get["probs_test"], atol=1e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.floats(0.05, 2), st.integers(0, 10_000))
def test_focal_scaling_is_its_formula_where_that_can_be_computed(
    gamma: float, weight: float, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(7, 4, dtype=torch.float64) * 2
    labels = torch.randint(4, (7,))
    ours = RegionClassificationLoss(gamma=gamma, background_weight=weight)(logits, labels)
    entropy = F.cross_entropy(logits, labels, reduction="none")
    weights = torch.where(labels == 3, weight, 1.0)
    formula = (weights * entropy * (1 - (-entropy).exp()) ** gamma).mean()
    torch.testing.assert_close(ours, formula)


def test_weights_without_focal_scaling_are_torchs_weighted_mean() -> None:
    logits, labels = torch.randn(9, 5), torch.randint(5, (9,))
    ours = RegionClassificationLoss(background_weight=0.8)(logits, labels)
    weight = torch.tensor([1.0, 1, 1, 1, 0.8])
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weight=weight))


def test_saturated_probabilities_have_finite_gradients() -> None:
    """The published form gives NaN here (pitfalls 4.4, 11.22)."""
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, -100.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    loss = RegionClassificationLoss(gamma=0.5)(logits, labels)
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[0], torch.zeros(3))


def test_no_regions_give_a_loss_of_zero_with_a_gradient() -> None:
    """The published focal branch crashes (pitfall 11.14)."""
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = RegionClassificationLoss(gamma=0.5)(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_nothing_but_background_of_weight_0_is_a_loss_of_zero_with_a_gradient(
    gamma: float | None,
) -> None:
    """The published weighted mean is 0 / 0 here."""
    logits = torch.randn(4, 3, requires_grad=True)
    loss = RegionClassificationLoss(gamma=gamma, background_weight=0.0)(logits, torch.full((4,), 2))
    (65536 * loss).backward()  # as with loss scaling
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_configured_embeddings_win_over_a_checkpoints() -> None:
    """Specification 10: of the same shape or not."""
    configured = torch.randn(3, 8)
    model = predictor(configured)
    before = model.state_dict()["cls_score.weight"].clone()
    state = model.state_dict() | {"cls_score.weight": torch.randn(3, 8)}
    state["bbox_pred.bias"] = torch.ones(4)
    model.load_state_dict(state)
    assert torch.equal(model.cls_score.weight, before)
    assert torch.equal(model.bbox_pred.bias, torch.ones(4))


def test_a_detector_without_classes_says_so() -> None:
    model = ClipPredictor(
        dim=8, num_classes=3, box2box_transform=Box2BoxTransform(weights=(1.0, 1, 1, 1))
    )
    with pytest.raises(VocabularyError, match="no classes"):
        model.eval()(torch.randn(2, 8))
    logits, _ = model(torch.randn(2, 8), torch.randn(5, 8))
    assert logits.shape == (2, 6)
    assert torch.equal(logits[:, -1], torch.zeros(2))
    model.load_state_dict(model.state_dict() | {"cls_score.weight": torch.randn(3, 8)})
    assert model(torch.randn(2, 8))[0].shape == (2, 4)


def test_a_learned_background_gets_a_gradient_and_a_fixed_one_none() -> None:
    for learned in (False, True):
        model = predictor(
            torch.randn(3, 8), options=ClipPredictorOptions(learned_background=learned)
        ).train()
        model.classification_loss(
            model(torch.randn(4, 8, requires_grad=True))[0], torch.tensor([0, 1, 2, 3])
        ).backward()
        gradient = model.cls_bg_score.weight.grad
        assert (gradient is not None and bool(gradient.any())) == learned
        assert model.cls_score.weight.grad is None
