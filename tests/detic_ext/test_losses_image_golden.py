"""Losses of image-labelled batches against numbers of the authors' code (image_losses.npz)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from detic_ext.losses.caption import CaptionLoss
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.dynamic_classes import ClassSubset
from detic_ext.losses.factory import build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.statistics import image_label_statistics
from tests.golden_cases import golden_arrays

G = golden_arrays("detic", "image_losses.npz")
NUM_IMAGES = sum(1 for key in G if re.fullmatch(r"boxes_\d+", key))
NUM_CLASSES = G["scores_0"].shape[1] - 1
VARIANTS = [k.removeprefix("image_loss_") for k in sorted(G) if k.startswith("image_loss_")]

pytestmark = pytest.mark.golden


def _per_image(name: str) -> list[np.ndarray]:
    return [G[f"{name}_{i}"] for i in range(NUM_IMAGES)]


def _batch(labels: list[list[int]], num_classes: int) -> ImageLabelBatch:
    return ImageLabelBatch(
        boxes_R4=torch.from_numpy(np.concatenate(_per_image("boxes"))),
        num_boxes=[len(boxes) for boxes in _per_image("boxes")],
        labels=labels,
        image_sizes=[tuple(size.tolist()) for size in _per_image("image_size")],
        num_classes=num_classes,
    )


def _close(actual: Tensor, expected: np.ndarray, *, gradient: bool = False) -> None:
    rtol, atol = (1e-3, 1e-6) if gradient else (1e-4, 1e-5)
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=rtol, atol=atol)


def _scores(variant: str) -> Tensor:
    """All logits of a case: class columns, then caption columns where there are some."""
    scores = np.concatenate(_per_image("scores"))
    if variant.startswith("dyn_"):
        scores = scores[:, [*G["dyn_inds"].tolist(), NUM_CLASSES]]
    if "caption" in variant:
        captions = G["caption_scores_2ranks" if "rank" in variant else "caption_scores"]
        scores = np.concatenate([scores, captions], axis=1)
    return torch.from_numpy(scores).requires_grad_()


def _number(pattern: str, variant: str, default: float) -> float:
    found = re.search(pattern, variant)
    return float(found.group(1).replace("p", ".")) if found else default


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "caption" not in v])
def test_golden_image_labels(variant: str) -> None:
    labels, num_classes = [label.tolist() for label in _per_image("labels")], NUM_CLASSES
    if variant.startswith("dyn_"):
        subset = ClassSubset.of(G["dyn_inds"].tolist(), NUM_CLASSES)
        assert subset.local_ids_C1.tolist() == G["dyn_cls_id_map"].tolist()
        labels, num_classes = subset.map_label_lists(labels), subset.num_classes
    batch = _batch(labels, num_classes)
    name = re.sub(r"^dyn_|_softmax$|_w\d+$", "", variant)
    loss = build_image_label_loss(name, softmax=variant.endswith("_softmax"))
    scores = _scores(variant)
    proposal_logits = torch.from_numpy(G["prop_scores"]).requires_grad_()
    result = loss(batch, KnownLogits(scores), proposal_logits)
    weighted = result.loss * _number(r"_w(\d+)$", variant, 0.1)
    weighted.backward()

    _close(weighted, G[f"image_loss_{variant}"])
    _close(scores.grad, G[f"grad_{variant}"], gradient=True)
    if f"grad_prop_{variant}" in G:
        _close(proposal_logits.grad, G[f"grad_prop_{variant}"], gradient=True)
    stats = image_label_statistics(batch, result)
    if f"stat_l_image_{variant}" in G:
        _close(stats["stats_l_image"], G[f"stat_l_image_{variant}"])
    if f"last_ind_{variant}" in G:
        assert stats["pool_stats"].item() == G[f"last_ind_{variant}"].item()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "caption" in v])
def test_golden_captions(variant: str) -> None:
    batch = _batch([label.tolist() for label in _per_image("labels")], NUM_CLASSES)
    scores = _scores(variant)
    caption_loss = CaptionLoss(negative_weight=_number(r"neg([\dp]+)$", variant, 1.0))
    rank = int(_number(r"rank(\d+)", variant, 0))
    total = l_caption = caption_loss(
        scores[caption_loss.select(batch), NUM_CLASSES + 1 :],
        batch,
        first_own_column=rank * NUM_IMAGES,
    )
    if variant.startswith("captiontag"):
        classes = KnownLogits(scores[:, : NUM_CLASSES + 1])
        result = build_image_label_loss("max_size")(batch, classes)
        stats = image_label_statistics(batch, result, l_caption)
        total = total + result.loss
        for name in ("stat_l_image", "stat_l_caption"):
            if f"{name}_{variant}" in G:
                _close(stats[name.replace("stat_", "stats_")], G[f"{name}_{variant}"])
        if f"last_ind_{variant}" in G:
            assert stats["pool_stats"].item() == G[f"last_ind_{variant}"].item()
    (0.1 * total).backward()
    _close(0.1 * total, G[f"image_loss_{variant}"])
    _close(scores.grad, G[f"grad_{variant}"], gradient=True)


def test_golden_file_holds_nothing_else() -> None:
    checked = {f"{k}_{v}" for v in VARIANTS for k in ("grad", "grad_prop", "image_loss")}
    checked |= {f"{k}_{v}" for v in VARIANTS for k in ("stat_l_image", "stat_l_caption")}
    checked |= {f"last_ind_{v}" for v in VARIANTS} | {"dyn_cls_id_map"}
    expected = {key for key in G if re.match(r"image_loss|grad_|stat_|last_ind|dyn_cls", key)}
    assert expected <= checked
