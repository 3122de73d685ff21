"""Image-label losses against plain loops, finite differences and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.factory import (
    IMAGE_LABEL_LOSSES,
    build_image_label_loss,
    image_label_loss_class,
)
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.image_label_loss import BoxSelectedLoss
from detic_ext.losses.statistics import image_label_statistics
from ext_common.errors import ConfigError, DatasetError
from tests.detic_ext.losses_twins import (
    LabelCase,
    label_case,
    label_cases,
    loop_image_loss,
)

NAMES = [name for name in IMAGE_LABEL_LOSSES if name != "wsod"]
SELECTED = [name for name in NAMES if issubclass(IMAGE_LABEL_LOSSES[name], BoxSelectedLoss)]
SOFTMAX = [(name, False) for name in NAMES] + [(name, True) for name in SELECTED]


def _run(name: str, case: LabelCase, softmax: bool = False):
    loss = build_image_label_loss(name, softmax=softmax)
    return loss(case.batch, KnownLogits(case.logits_RK), case.proposal_RK)


@pytest.mark.parametrize(("name", "softmax"), SOFTMAX)
@given(case=label_cases())
@settings(max_examples=25, deadline=None)
def test_equals_the_plain_loop(name: str, softmax: bool, case: LabelCase) -> None:
    inputs = (case.logits_RK, case.proposal_RK)
    expected, chosen = loop_image_loss(name, case.batch, *inputs, softmax)
    result = _run(name, case, softmax)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert result.selection.rows_M[result.selection.slot_P].tolist() == chosen
    logits = [
        case.logits_RK[row, label].item()
        for row, label in zip(chosen, result.selection.label_P.tolist(), strict=True)
    ]
    assert result.label_logit_P.tolist() == logits

    if not expected.requires_grad:  # no image answers: a zero that still reaches the classifier
        result.loss.backward()
        assert (case.logits_RK.grad == 0).all()
        return
    ours = torch.autograd.grad(result.loss, inputs, allow_unused=True)
    loop = torch.autograd.grad(expected, inputs, allow_unused=True)
    for actual, wanted in zip(ours, loop, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if actual is None else actual,
            torch.zeros(()) if wanted is None else wanted,
            rtol=1e-8,
            atol=1e-12,
        )


@pytest.mark.parametrize(("name", "softmax"), SOFTMAX)
def test_gradient_by_finite_differences(name: str, softmax: bool) -> None:
    case = label_case([4, 1, 0, 3], [[1, 2], [0], [1], []], num_classes=3)
    loss = build_image_label_loss(name, softmax=softmax)

    def value(logits: Tensor, proposal: Tensor) -> Tensor:
        return loss(case.batch, KnownLogits(logits), proposal).loss

    assert torch.autograd.gradcheck(value, (case.logits_RK, case.proposal_RK))


@pytest.mark.parametrize("name", NAMES)
@given(case=label_cases(), order=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_order_of_images_and_labels_does_not_matter(name: str, case: LabelCase, order) -> None:
    batch = case.batch
    images = list(range(batch.num_images))
    order.shuffle(images)
    labels = [order.sample(list(batch.labels[i]), len(batch.labels[i])) for i in images]
    rows = [batch.first_rows[i] + j for i in images for j in range(batch.num_boxes[i])]
    shuffled = ImageLabelBatch(
        boxes_R4=batch.boxes_R4[rows],
        num_boxes=[batch.num_boxes[i] for i in images],
        labels=labels,
        image_sizes=[batch.image_sizes[i] for i in images],
        num_classes=batch.num_classes,
    )
    other = LabelCase(shuffled, case.logits_RK[rows], case.proposal_RK[rows])
    torch.testing.assert_close(_run(name, other).loss, _run(name, case).loss)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "wsddn"])
@given(case=label_cases())
@settings(max_examples=15, deadline=None)
def test_only_chosen_regions_get_gradients(name: str, case: LabelCase) -> None:
    result = _run(name, case)
    result.loss.backward()
    touched = set(case.logits_RK.grad.abs().sum(dim=1).nonzero()[:, 0].tolist())
    assert touched == set(result.selection.rows_M.tolist())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "wsddn"])
@given(case=label_cases(), padding=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_classes_that_score_zero_add_ln2_and_nothing_else(
    name: str, case: LabelCase, padding: int
) -> None:
    """A padding class (zero embedding) behaves like the background column."""
    padded = torch.cat([case.logits_RK, case.logits_RK.new_zeros(len(case.logits_RK), padding)], 1)
    plain = _run(name, case)
    longer = _run(name, LabelCase(case.batch, padded, case.proposal_RK))
    share = len(case.batch.answering) / case.batch.num_images
    assert longer.loss.item() == pytest.approx(
        plain.loss.item() + share * padding * math.log(2), rel=1e-9
    )
    assert longer.selection.rows_M.tolist() == plain.selection.rows_M.tolist()


@pytest.mark.parametrize("name", SELECTED)
def test_chosen_regions_are_all_that_is_classified(name: str) -> None:
    case = label_case([5, 0, 4, 1, 3], [[0, 1], [1], [2], [0], []], num_classes=3)
    asked = []

    def classify(rows_M=None, columns_S=None):
        asked.append((rows_M.tolist(), columns_S))
        return case.logits_RK[rows_M]

    loss = build_image_label_loss(name)
    result = loss(case.batch, classify)
    assert asked == [(loss.select(case.batch).rows_M.tolist(), None)]
    assert len(asked[0][0]) == 3  # images 0, 2 and 3; two labels share one row
    assert result.selection.slot_P.tolist() == [0, 0, 1, 2]


def test_max_score_looks_at_the_columns_of_its_labels_only() -> None:
    case = label_case([3, 2], [[4, 1], [4]], num_classes=6)
    asked = []

    def classify(rows_M=None, columns_S=None):
        asked.append((rows_M is None, None if columns_S is None else columns_S.tolist()))
        return KnownLogits(case.logits_RK)(rows_M, columns_S)

    build_image_label_loss("max_score")(case.batch, classify)
    assert asked == [(True, [1, 4]), (False, None)]


def test_largest_region_ignores_the_last_one() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 5, 5], [0, 0, 5, 5], [0, 0, 99, 99.0]])
    batch = ImageLabelBatch(boxes, [4], [[0]], [(99, 99)], num_classes=1)
    assert build_image_label_loss("max_size").select(batch).rows_M.tolist() == [1]
    alone = ImageLabelBatch(boxes[:1], [1], [[0]], [(99, 99)], num_classes=1)
    assert build_image_label_loss("max_size").select(alone).rows_M.tolist() == [0]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_single_precision(name: str) -> None:
    case = label_case([4, 2], [[1, 2], [0]], num_classes=3)
    halves = LabelCase(
        case.batch, case.logits_RK.detach().bfloat16(), case.proposal_RK.detach().bfloat16()
    )
    singles = LabelCase(case.batch, halves.logits_RK.float(), halves.proposal_RK.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _run(name, halves).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _run(name, singles).loss)


def test_saturated_votes_of_wsddn_stay_finite() -> None:
    batch = ImageLabelBatch(torch.rand(1, 4), [1], [[0]], [(9, 9)], num_classes=1)
    logits = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = build_image_label_loss("wsddn")(batch, KnownLogits(logits), torch.zeros(1, 2)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


# --- errors and names -----------------------------------------------------------------------------


def test_unknown_loss_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match="'wslda'.*max_size, max_score, min_loss, first, image"):
        image_label_loss_class("wslda")


@pytest.mark.parametrize("name", ["max_score", "min_loss", "wsddn", "wsod"])
def test_softmax_needs_a_loss_that_chooses_by_box(name: str) -> None:
    with pytest.raises(ConfigError, match="no softmax form.*max_size"):
        build_image_label_loss(name, softmax=True)


def test_needs_of_losses() -> None:
    assert [n for n in IMAGE_LABEL_LOSSES if IMAGE_LABEL_LOSSES[n].needs_image_box] == ["image"]
    branch = [n for n in IMAGE_LABEL_LOSSES if IMAGE_LABEL_LOSSES[n].needs_proposal_logits]
    assert branch == ["wsddn", "wsod"]
    case = label_case([2], [[0]], num_classes=2)
    with pytest.raises(ConfigError, match="WITH_SOFTMAX_PROP"):
        build_image_label_loss("wsod")(case.batch, KnownLogits(case.logits_RK))


@pytest.mark.parametrize("label", [-1, 3])
def test_label_without_a_class_is_refused(label: int) -> None:
    with pytest.raises(DatasetError, match=f"image 1 .* label {label}, .* has 3 classes"):
        label_case([1, 1], [[0], [label]], num_classes=3)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(DatasetError, match="one entry per image"):
        label_case([1, 1], [[0]], num_classes=3)
    with pytest.raises(DatasetError, match="3 boxes for"):
        ImageLabelBatch(torch.rand(3, 4), [1, 1], [[0], [0]], [(1, 1)] * 2, num_classes=1)


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_describe_the_last_label_of_the_last_image_with_boxes() -> None:
    boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 10, 20], [20, 40, 60, 60], [0, 0, 1, 1.0]])
    batch = ImageLabelBatch(
        boxes, [1, 3, 0], [[0], [1, 0], [1]], [(50, 50), (100, 200), (8, 8)], num_classes=2
    )
    logits = torch.arange(12.0).reshape(4, 3)
    result = build_image_label_loss("max_size")(batch, KnownLogits(logits))
    stats = image_label_statistics(batch, result, torch.tensor(2.5))
    assert {name: value.item() for name, value in stats.items()} == {
        "stats_l_image": pytest.approx(result.loss.item()),
        "stats_l_caption": 2.5,
        "pool_stats": 1,
        "stats_select_size": pytest.approx(800 / 20000),
        "stats_select_x": pytest.approx(40 / 200),
        "stats_select_y": pytest.approx(50 / 100),
        "stats_max_label_score": 6.0,
        "stats_label": 0,
    }


def test_statistics_without_regions_are_the_losses() -> None:
    case = label_case([0, 2], [[0], []], num_classes=2)
    result = _run("max_size", case)
    assert set(image_label_statistics(case.batch, result)) == {"stats_l_image"}
