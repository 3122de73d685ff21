"""Losses of box batches against numbers of the authors' code (box_losses.npz)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.box_regression import BoxRegressionLoss
from detic_ext.losses.class_frequency import frequency_weight
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.losses.federated import ColumnSample
from tests.golden_cases import golden_arrays

G = golden_arrays("detic", "box_losses.npz")
NUM_CLASSES = len(G["image_count"])
VARIANTS = [k.removeprefix("grad_scores_") for k in sorted(G) if k.startswith("grad_scores_")]

pytestmark = pytest.mark.golden


def _tensor(name: str) -> Tensor:
    return torch.from_numpy(G[name])


def _close(actual: Tensor, expected: np.ndarray, *, gradient: bool = False) -> None:
    rtol, atol = (1e-3, 1e-6) if gradient else (1e-4, 1e-5)
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol, atol=atol)


def _classification(variant: str, scores: Tensor, labels: Tensor) -> Tensor:
    federated = "fed" in variant
    loss = BoxClassificationLoss(
        softmax="softmax" in variant,
        federated_size=len(G["fed_sampled_inds"]) if federated else None,
        ignore_unseen="ignorezero" in variant,
    )
    sample = ColumnSample.fixed(_tensor("fed_sampled_inds"), NUM_CLASSES) if federated else None
    freq_weight = frequency_weight(G["image_count"].tolist())
    return loss(KnownLogits(scores), labels, freq_weight_C=freq_weight, sample=sample)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_classification(variant: str) -> None:
    scores = _tensor("scores").requires_grad_()
    loss = _classification(variant, scores, _tensor("gt_classes"))
    loss.backward()
    _close(loss, G[f"loss_cls_{variant}"])
    _close(scores.grad, G[f"grad_scores_{variant}"], gradient=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_classification_without_regions(variant: str) -> None:
    scores = torch.zeros(0, NUM_CLASSES + 1, requires_grad=True)
    loss = _classification(variant, scores, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    _close(loss, G["loss_cls_empty"])


@pytest.mark.parametrize("name", sorted(k for k in G if k.startswith("freq_weight_pow")))
def test_golden_frequency_weight(name: str) -> None:
    power = float(re.sub(r".*pow", "", name))
    _close(frequency_weight(G["image_count"].tolist(), power=power), G[name])


def _regression(kind: str) -> tuple[Tensor, Tensor]:
    deltas = _tensor("pred_deltas").requires_grad_()
    loss = BoxRegressionLoss(weights=tuple(G["bbox_reg_weights"].tolist()), kind=kind)
    value = loss(
        deltas, _tensor("proposal_boxes"), _tensor("gt_boxes"), _tensor("gt_classes"), NUM_CLASSES
    )
    value.backward()
    return value, deltas.grad


def test_golden_box_regression() -> None:
    value, gradient = _regression("smooth_l1")
    _close(value, G["loss_box_reg"])
    _close(gradient, G["grad_deltas"], gradient=True)


def test_golden_box_regression_giou() -> None:
    _close(_regression("giou")[0], G["loss_box_reg_giou"])


def test_golden_dynamic_classifier() -> None:
    subset = ClassSubset.of(G["dyn_inds"].tolist(), NUM_CLASSES)
    assert subset.local_ids_C1.tolist() == G["dyn_cls_id_map"].tolist()
    scores = _tensor("scores")[:, subset.columns(torch.device("cpu"))]
    labels = subset.map_labels(_tensor("gt_classes"))
    _close(BoxClassificationLoss()(KnownLogits(scores), labels), G["dyn_loss_cls"])
    loss = BoxRegressionLoss(weights=tuple(G["bbox_reg_weights"].tolist()))
    boxes = (_tensor("pred_deltas"), _tensor("proposal_boxes"), _tensor("gt_boxes"))
    _close(loss(*boxes, labels, subset.num_classes), G["dyn_loss_box_reg"])


def test_golden_file_holds_nothing_else() -> None:
    checked = {f"{kind}_{v}" for kind in ("loss_cls", "grad_scores") for v in VARIANTS}
    checked |= {"loss_cls_empty", "loss_box_reg", "grad_deltas", "loss_box_reg_giou"}
    checked |= {"dyn_loss_cls", "dyn_loss_box_reg", "dyn_cls_id_map"}
    expected = {key for key in G if re.match(r"loss_|grad_|dyn_loss|dyn_cls", key)}
    assert expected == checked
