"""The losses against plain loops over the formulas of the specification, and their borders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ext_common.errors import DatasetError
from regionclip_ext.concepts.matching import match_concepts
from regionclip_ext.losses.concept_contrast import concept_contrast_loss
from regionclip_ext.losses.image_text import image_text_loss
from regionclip_ext.losses.region_distillation import region_distillation_loss
from regionclip_ext.losses.similarity import cosine_logits

REGIONS, CONCEPTS = 9, 6


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(REGIONS, CONCEPTS, generator=generator, dtype=torch.float64)
    teacher = torch.randn(REGIONS, CONCEPTS, generator=generator, dtype=torch.float64).softmax(1)
    labels = torch.randint(
        3, (REGIONS,), generator=generator
    )  # three concepts: several regions each
    kept = torch.rand(REGIONS, generator=generator) > 0.3
    labels[~kept] = CONCEPTS - 1  # a concept that no kept region has
    return logits, teacher, labels, kept


def _distillation_loop(logits: Tensor, teacher: Tensor, kept: Tensor) -> float:
    rows = [r for r in range(REGIONS) if kept[r]]
    total = 0.0
    for r in rows:
        whole = sum(math.exp(z) for z in logits[r].tolist())
        for p, z in zip(teacher[r].tolist(), logits[r].tolist(), strict=True):
            total += p * (math.log(p) - math.log(math.exp(z) / whole))
    return total / len(rows)


def _contrast_loop(logits: Tensor, labels: Tensor, kept: Tensor) -> float:
    rows = [r for r in range(REGIONS) if kept[r]]
    total = 0.0
    for r in rows:
        terms = {j: math.exp(logits[r, labels[j]]) for j in rows}  # the K x K form
        own = sum(term for j, term in terms.items() if labels[j] == labels[r])
        total -= math.log(own / sum(terms.values()))
    return total / len(rows)


def test_region_losses_equal_the_loops_of_the_specification() -> None:
    logits, teacher, labels, kept = _inputs()
    assert 2 < kept.sum() < REGIONS
    assert region_distillation_loss(logits, teacher, kept).item() == pytest.approx(
        _distillation_loop(logits, teacher, kept), rel=1e-9
    )
    assert concept_contrast_loss(logits, labels, kept).item() == pytest.approx(
        _contrast_loop(logits, labels, kept), rel=1e-9
    )


def test_region_losses_do_not_depend_on_the_order_of_regions() -> None:
    logits, teacher, labels, kept = _inputs()
    order = torch.randperm(REGIONS)
    assert concept_contrast_loss(logits, labels, kept).item() == pytest.approx(
        concept_contrast_loss(logits[order], labels[order], kept[order]).item(), rel=1e-12
    )
    assert region_distillation_loss(logits, teacher, kept).item() == pytest.approx(
        region_distillation_loss(logits[order], teacher[order], kept[order]).item(), rel=1e-12
    )


def test_regions_left_out_get_no_gradient() -> None:
    logits, teacher, labels, kept = _inputs()
    logits.requires_grad_()
    loss = concept_contrast_loss(logits, labels, kept)
    (loss + region_distillation_loss(logits, teacher, kept)).backward()
    assert logits.grad is not None
    assert not logits.grad[~kept].any()
    assert logits.grad[kept].abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("regions", [0, 4])
def test_no_kept_region_gives_zero_that_can_be_differentiated(regions: int) -> None:
    logits = torch.randn(regions, CONCEPTS, requires_grad=True)
    kept = torch.zeros(regions, dtype=torch.bool)
    labels = torch.zeros(regions, dtype=torch.int64)
    loss = concept_contrast_loss(logits, labels, kept)
    loss = loss + region_distillation_loss(logits, torch.zeros(regions, CONCEPTS), kept)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_opposite_region_is_finite_where_probabilities_underflow() -> None:
    student = torch.tensor([[-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    concepts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    match = match_concepts(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), concepts, 0.1)
    logits = cosine_logits(student, concepts, 0.01)
    loss = region_distillation_loss(logits, match.probs_RC, match.kept_R)
    loss = loss + concept_contrast_loss(logits, match.labels_R, match.kept_R)
    loss.backward()
    assert loss.item() > 100
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_threshold_is_strict_and_none_kept_means_all_kept() -> None:
    concepts = torch.eye(2)
    sure, unsure = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    match = match_concepts(torch.stack([sure, unsure]), concepts, 0.5)
    assert match.kept_R.tolist() == [True, False]
    match = match_concepts(unsure[None], concepts, 0.5)
    assert match.confident_R.tolist() == [False]
    assert match.kept_R.tolist() == [True]
    assert not match_concepts(torch.zeros(0, 2), concepts, 0.5).kept_R.any()


def test_similarity_is_computed_in_single_precision_under_autocast() -> None:
    feats, texts = torch.randn(5, 16), torch.randn(7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = cosine_logits(feats, texts, 0.01)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, cosine_logits(feats, texts, 0.01))


def test_image_text_loss_names_a_missing_caption() -> None:
    with pytest.raises(DatasetError, match="2 captions for 3 images"):
        image_text_loss(torch.randn(3, 4), torch.randn(2, 4), 0.01)
