"""Matching and losses of the Deformable-DETR variant, against brute force and plain loops."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detic_ext.losses.detr_boxes import pairwise_giou_loss, to_centres, to_corners
from detic_ext.losses.detr_criterion import CriterionOptions, DetrCriterion
from detic_ext.losses.detr_data import DetrPredictions, DetrTargets, EncoderPredictions
from detic_ext.losses.detr_image_labels import largest_query_loss
from detic_ext.losses.detr_matching import MatchWeights, assign, match_cost
from ext_common.errors import DatasetError

ALPHA = 0.25


def random_boxes(*shape: int) -> Tensor:
    """(centre, size) inside of the image."""
    size = torch.rand(*shape, 2) * 0.4 + 0.05
    return torch.cat([size / 2 + torch.rand(*shape, 2) * (1 - size), size], dim=-1)


def random_targets(*counts: int, classes: int = 6) -> DetrTargets:
    labels = torch.randint(0, classes, (sum(counts),))
    return DetrTargets(labels, random_boxes(sum(counts)), counts, len(labels.unique()))


def random_predictions(
    layers: int = 2, images: int = 2, queries: int = 5, classes: int = 6, tokens: int = 7
) -> DetrPredictions:
    logits = torch.randn(layers, images, queries, classes)
    encoder = EncoderPredictions(
        torch.randn(images, tokens), random_boxes(images, tokens), torch.rand(images, tokens) < 0.8
    )
    return DetrPredictions(logits, random_boxes(layers, images, queries), encoder)


# --- boxes and matching ----------------------------------------------------------------------------


def test_boxes_by_centre_and_by_corners() -> None:
    boxes = random_boxes(7)
    assert torch.allclose(to_centres(to_corners(boxes)), boxes, atol=1e-6)
    assert torch.allclose(
        to_corners(torch.tensor([0.5, 0.25, 0.5, 0.25])), torch.tensor([0.25, 0.125, 0.75, 0.375])
    )


def loop_giou(a: list[float], b: list[float]) -> float:
    def corners(box: list[float]) -> tuple[float, ...]:
        x, y, w, h = box
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners(a), corners(b)
    inter = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = a[2] * a[3] + b[2] * b[3] - inter
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return inter / union - (hull - union) / hull


def test_giou_holds_for_tiny_boxes_too() -> None:
    boxes, targets = random_boxes(4), random_boxes(3)
    targets[0, 2:] = 0.001  # one pixel of a thousand
    boxes[0] = targets[0]
    loss = pairwise_giou_loss(boxes, targets)
    for q in range(4):
        for n in range(3):
            wanted = 1 - loop_giou(boxes[q].tolist(), targets[n].tolist())
            assert math.isclose(float(loss[q, n]), wanted, abs_tol=1e-3)


def loop_focal(logit: float, target: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    if target:
        return -ALPHA * (1 - p) ** 2 * math.log(p)
    return -(1 - ALPHA) * p**2 * math.log(1 - p)


def test_cost_is_that_of_plain_loops() -> None:
    logits, boxes, targets = torch.randn(2, 4, 3), random_boxes(2, 4), random_boxes(3)
    cost = match_cost(logits, boxes, targets, MatchWeights())
    for layer in range(2):
        for q in range(4):
            for n in range(3):
                logit, box, target = logits[layer, q, n], boxes[layer, q], targets[n]
                wanted = 2 * (loop_focal(float(logit), True) - loop_focal(float(logit), False))
                wanted += 5 * sum(
                    abs(a - b) for a, b in zip(box.tolist(), target.tolist(), strict=True)
                )
                wanted += 2 * (1 - loop_giou(box.tolist(), target.tolist()))
                assert math.isclose(float(cost[layer, q, n]), wanted, rel_tol=1e-4, abs_tol=1e-4)


@given(queries=st.integers(1, 6), targets=st.integers(0, 4), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_assignment_is_the_best_of_all(queries: int, targets: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(2, queries, targets, generator=generator)
    (found,) = assign([cost])
    pairs = min(queries, targets)
    assert found.queries_GM.shape == found.targets_GM.shape == (2, pairs)
    for layer in range(2):
        used, answered = found.queries_GM[layer].tolist(), found.targets_GM[layer].tolist()
        assert len(set(used)) == len(set(answered)) == pairs
        table = cost[layer] if queries >= targets else cost[layer].T
        best = min(
            sum(float(table[one, n]) for n, one in enumerate(order))
            for order in permutations(range(table.shape[0]), table.shape[1])
        )
        got = sum(float(cost[layer, q, n]) for q, n in zip(used, answered, strict=True))
        assert math.isclose(got, best, abs_tol=1e-5)


def test_the_shortlist_gives_the_assignment_of_the_full_matrix() -> None:
    # all boxes want the same few queries
    cost = torch.rand(3, 200, 20) + torch.linspace(0, 3, 200)[None, :, None]
    (found,) = assign([cost])
    for layer in range(3):
        rows, columns = linear_sum_assignment(cost[layer].numpy())
        best = cost[layer].numpy()[rows, columns].sum()
        got = cost[layer].numpy()[found.queries_GM[layer], found.targets_GM[layer]].sum()
        assert np.isclose(got, best)


def test_images_are_matched_by_themselves() -> None:
    costs = [torch.rand(2, 6, 3), torch.rand(2, 6, 0), torch.rand(1, 9, 2)]
    together = assign(costs)
    for alone, one in zip((assign([cost])[0] for cost in costs), together, strict=True):
        assert np.array_equal(alone.queries_GM, one.queries_GM)
        assert np.array_equal(alone.targets_GM, one.targets_GM)
    assert assign([]) == []


def test_costs_that_are_not_finite_do_not_stop_the_matching() -> None:
    cost = torch.rand(1, 4, 2)
    cost[0, 0, 0], cost[0, 1, 1], cost[0, 2] = torch.nan, torch.inf, torch.nan
    (found,) = assign([cost])
    assert 2 not in found.queries_GM
    (found,) = assign([torch.full((1, 3, 2), torch.nan)])
    assert found.queries_GM.shape == (1, 2)


# --- losses on boxes ---------------------------------------------------------------------------------


def loop_losses(
    logits: Tensor, boxes: Tensor, targets: DetrTargets, classes: list[int]
) -> tuple[float, float, float]:
    """Unweighted sums of one layer over the given classes; brute-force matching."""
    focal = l1 = giou = 0.0
    first = 0
    for image, count in enumerate(targets.counts):
        labels = targets.labels_N[first : first + count].tolist()
        wanted = targets.boxes_N4[first : first + count].tolist()
        first += count
        cost = match_cost(
            logits[image][None][:, :, labels], boxes[image][None], torch.tensor(wanted).view(-1, 4),
            MatchWeights(),
        )[0]  # fmt: skip
        best = min(
            permutations(range(logits.shape[1]), count),
            key=lambda order: sum(float(cost[q, n]) for n, q in enumerate(order)),
        )
        label_of = dict(zip(best, labels, strict=True))
        for q in range(logits.shape[1]):
            focal += sum(
                loop_focal(float(logits[image, q, c]), label_of.get(q) == c) for c in classes
            )
        for q, box in zip(best, wanted, strict=True):
            mine = boxes[image, q].tolist()
            l1 += sum(abs(a - b) for a, b in zip(mine, box, strict=True))
            giou += 1 - loop_giou(mine, box)
    return focal, l1, giou


def test_losses_of_every_layer_are_those_of_plain_loops() -> None:
    predictions, targets = random_predictions(), random_targets(3, 1)
    losses = DetrCriterion(num_classes=6)(predictions, targets)
    for layer, suffix in ((0, "_0"), (1, "")):
        wanted = loop_losses(
            predictions.logits_KBQC[layer], predictions.boxes_KBQ4[layer], targets, list(range(6))
        )
        for name, weight, value in zip(("ce", "bbox", "giou"), (2, 5, 2), wanted, strict=True):
            got = float(losses[f"loss_{name}{suffix}"])
            assert math.isclose(got, weight * value / 4, rel_tol=1e-4), (name, layer)


def test_the_encoder_is_asked_for_objects_of_any_class_on_usable_tokens() -> None:
    predictions, targets = random_predictions(images=1), random_targets(2)
    encoder = predictions.encoder
    assert encoder is not None
    encoder.usable_BT[:] = torch.tensor([[True, True, False, True, True, False, True]])
    losses = DetrCriterion(num_classes=6)(predictions, targets)
    usable = encoder.usable_BT[0]
    any_class = DetrTargets(torch.zeros(2, dtype=torch.int64), targets.boxes_N4, (2,), 1)
    focal, l1, giou = loop_losses(
        encoder.logits_BT[:, usable, None], encoder.boxes_BT4[:, usable], any_class, [0]
    )
    assert math.isclose(float(losses["loss_ce_enc"]), 2 * focal / 2, rel_tol=1e-4)
    assert math.isclose(float(losses["loss_bbox_enc"]), 5 * l1 / 2, rel_tol=1e-4)
    assert math.isclose(float(losses["loss_giou_enc"]), 2 * giou / 2, rel_tol=1e-4)


def test_names_do_not_depend_on_the_annotations_and_empty_images_are_pushed_to_nothing() -> None:
    predictions = random_predictions()
    predictions.logits_KBQC.requires_grad_()
    predictions.boxes_KBQ4.requires_grad_()
    criterion = DetrCriterion(num_classes=6, options=CriterionOptions(federated_size=3))
    full = criterion(predictions, random_targets(3, 1))
    empty = criterion(predictions, random_targets(0, 0))
    assert list(full) == list(empty)
    assert float(empty["loss_ce"].detach()) > 0
    assert float(empty["loss_bbox"].detach()) == float(empty["loss_giou_0"].detach()) == 0
    sum(empty.values()).backward()
    assert predictions.logits_KBQC.grad is not None
    assert bool((predictions.logits_KBQC.grad >= 0).all())
    assert predictions.boxes_KBQ4.grad is not None
    assert float(predictions.boxes_KBQ4.grad.abs().sum()) == 0


def test_more_boxes_than_queries() -> None:
    predictions, targets = random_predictions(queries=2, images=1), random_targets(5)
    losses = DetrCriterion(num_classes=6)(predictions, targets)
    assert all(bool(value.isfinite()) for value in losses.values())
    assert float(losses["loss_bbox"]) > 0


def test_federated_loss_asks_about_matched_classes_and_drawn_ones() -> None:
    classes = 40
    predictions = random_predictions(layers=1, classes=classes)
    predictions.logits_KBQC.requires_grad_()
    targets = random_targets(2, 2, classes=10)
    frequency = torch.zeros(classes)
    frequency[20:30] = 1.0  # only these can be drawn
    criterion = DetrCriterion(
        num_classes=classes, options=CriterionOptions(federated_size=8), freq_weight_C=frequency
    )
    criterion(predictions, targets)["loss_ce"].backward()
    assert predictions.logits_KBQC.grad is not None
    asked = set(predictions.logits_KBQC.grad.abs().sum(dim=(0, 1, 2)).nonzero()[:, 0].tolist())
    present = set(targets.labels_N.tolist())
    assert present <= asked
    assert len(asked) == 8
    assert asked - present <= set(range(20, 30))


def test_federated_loss_with_fewer_classes_than_asked_for_is_the_plain_one() -> None:
    predictions, targets = random_predictions(), random_targets(2, 1)
    sampled = DetrCriterion(num_classes=6, options=CriterionOptions(federated_size=50))
    plain = DetrCriterion(num_classes=6)
    for name, value in plain(predictions, targets).items():
        assert torch.allclose(sampled(predictions, targets)[name], value)
    assert set(sampled.state_dict()) == {"freq_weight"}
    assert not plain.state_dict()


def test_a_prediction_that_is_not_finite_shows_in_its_loss() -> None:
    predictions, targets = random_predictions(), random_targets(2, 1)
    predictions.logits_KBQC[1, 0, 0] = torch.nan
    losses = DetrCriterion(num_classes=6)(predictions, targets)
    assert not bool(losses["loss_ce"].isfinite())
    assert bool(losses["loss_ce_0"].isfinite())


# --- image labels --------------------------------------------------------------------------------------


def test_image_labels_are_learned_by_the_largest_query_of_every_layer() -> None:
    predictions = random_predictions(layers=3, images=3, queries=4)
    logits, boxes = predictions.logits_KBQC.requires_grad_(), predictions.boxes_KBQ4
    labels = [[1, 4], [], [2]]
    loss = largest_query_loss(logits, boxes, labels)
    wanted = 0.0
    chosen = []
    for layer in range(3):
        for image, of_image in enumerate(labels):
            sizes = [w * h for _, _, w, h in boxes[layer, image].tolist()]
            q = sizes.index(max(sizes))
            for label in of_image:
                bce = sum(
                    math.log(1 + math.exp(-s if c == label else s))
                    for c, s in enumerate(logits[layer, image, q].tolist())
                )
                wanted += bce / len(of_image) / 3
            if of_image:
                chosen.append((layer, image, q))
    assert math.isclose(float(loss.detach()), wanted, rel_tol=1e-5)
    loss.backward()
    assert logits.grad is not None
    touched = {tuple(index[:3]) for index in logits.grad.nonzero().tolist()}
    assert touched == set(chosen)


def test_without_labels_the_loss_is_zero_and_in_the_graph() -> None:
    logits = torch.randn(2, 1, 3, 4, requires_grad=True)
    loss = largest_query_loss(logits, random_boxes(2, 1, 3), [[]])
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) == 0


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(DatasetError, match="label 4"):
        largest_query_loss(torch.randn(1, 1, 3, 4), random_boxes(1, 1, 3), [[4]])


def test_image_labels_do_not_wait_for_the_device() -> None:
    # the meta device has no values to ask for
    logits = torch.zeros(2, 2, 3, 4, device="meta", requires_grad=True)
    loss = largest_query_loss(logits, torch.zeros(2, 2, 3, 4, device="meta"), [[1], [0, 2]])
    loss.backward()
    assert loss.shape == ()
