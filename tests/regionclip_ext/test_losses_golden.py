"""Concept matching and the three pretraining losses against numbers of the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from regionclip_ext.concepts.matching import ConceptMatch, match_concepts
from regionclip_ext.losses.concept_contrast import concept_contrast_loss
from regionclip_ext.losses.image_text import image_text_loss
from regionclip_ext.losses.region_distillation import region_distillation_loss
from regionclip_ext.losses.similarity import cosine_logits
from tests.golden_cases import golden_arrays

MATCHING = golden_arrays("regionclip", "region_concept_matching.npz")
IMAGE_TEXT = golden_arrays("regionclip", "image_text.npz")

pytestmark = pytest.mark.golden


def _cases(arrays: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.split("/")[0] for key in arrays})


def _case(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}


def _match(case: dict[str, np.ndarray]) -> ConceptMatch:
    return match_concepts(
        torch.from_numpy(case["teacher_region_feats"]),
        torch.from_numpy(case["teacher_concept_emb"]),
        float(case["concept_thres"]),
        temperature=float(case["teacher_temp"]),
    )


@pytest.mark.parametrize("name", _cases(MATCHING))
def test_golden_pseudo_labels(name: str) -> None:
    case = _case(MATCHING, name)
    match = _match(case)
    kept = match.kept_R.numpy()
    # the flag of the authors is the one before the fallback
    expected_kept = case["keep_regions"].astype(bool)
    np.testing.assert_array_equal(kept, expected_kept if expected_kept.any() else True)
    labels = match.labels_R[match.kept_R]
    np.testing.assert_array_equal(labels, case["target_inds"])
    np.testing.assert_allclose(match.probs_RC[match.kept_R], case["soft_targets"], atol=1e-4)
    np.testing.assert_array_equal(labels[:, None] == labels, case["label_matrix"])
    np.testing.assert_array_equal(
        torch.from_numpy(case["student_concept_emb"])[labels], case["target_embs"]
    )


@pytest.mark.parametrize("name", _cases(MATCHING))
@pytest.mark.parametrize("loss", ["region_distill", "concept_contrastive"])
def test_golden_region_loss(loss: str, name: str) -> None:
    case = _case(MATCHING, name)
    match = _match(case)
    student = torch.from_numpy(case["student_region_feats"]).requires_grad_()
    logits = cosine_logits(
        student, torch.from_numpy(case["student_concept_emb"]), float(case["student_temp"])
    )
    if loss == "region_distill":
        value = region_distillation_loss(logits, match.probs_RC, match.kept_R)
    else:
        value = concept_contrast_loss(logits, match.labels_R, match.kept_R)
    value.backward()
    np.testing.assert_allclose(value.item(), case[f"loss_{loss}_stable64"], rtol=1e-4)
    official = case[f"loss_{loss}"]
    if np.isfinite(official):
        np.testing.assert_allclose(value.item(), official, rtol=1e-4)
    expected = case["grad_distill" if loss == "region_distill" else "grad_contrastive"]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    if np.isfinite(expected).all():
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(student.grad, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", _cases(IMAGE_TEXT))
def test_golden_image_text_loss(name: str) -> None:
    case = _case(IMAGE_TEXT, name)
    inputs: list[Tensor] = [
        torch.from_numpy(case[key]).requires_grad_() for key in ("global_feats", "text_embs")
    ]
    loss = image_text_loss(*inputs, float(case["temp"]))
    loss.backward()
    np.testing.assert_allclose(loss.item(), case["loss_img_txt_level"], rtol=1e-4)
    for tensor, key in zip(inputs, ("grad_global_feats", "grad_text_embs"), strict=True):
        expected = case[key]
        np.testing.assert_allclose(
            tensor.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
        )
