"""Plain-loop forms of the losses, straight from the specification, and random batches for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from detic_ext.losses.image_label_batch import ImageLabelBatch


def bce(logit: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of one logit."""
    p = logit.sigmoid()
    return -(target * p.log() + (1 - target) * (1 - p).log())


def summed_bce(row: Tensor, label: int) -> Tensor:
    return sum((bce(s, float(c == label)) for c, s in enumerate(row)), row.new_zeros(()))


def loop_image_loss(
    name: str, batch: ImageLabelBatch, logits_RK: Tensor, proposal_RK: Tensor, softmax: bool = False
) -> tuple[Tensor, list[int]]:
    """Loss before weighting and the chosen row (of R) for each image and label in turn."""
    total, chosen = logits_RK.new_zeros(()), []
    first = 0
    for n, labels in zip(batch.num_boxes, batch.labels, strict=True):
        rows, shares = logits_RK[first : first + n], proposal_RK[first : first + n].softmax(dim=0)
        for label in labels if n else []:
            j = _choose(name, batch.boxes_R4[first : first + n], rows, shares, label)
            chosen.append(first + j)
            if name == "wsddn":
                score = (rows.sigmoid() * shares).sum(dim=0).clamp(1e-10, 1 - 1e-10)
                parts = [s.log() if c == label else (1 - s).log() for c, s in enumerate(score)]
                loss = -sum(parts) / len(parts)
            elif softmax:
                loss = -rows[j].softmax(dim=0)[label].log()
            else:
                loss = summed_bce(rows[j], label)
            total = total + loss / len(labels) / batch.num_images
        first += n
    return total, chosen


def _choose(name: str, boxes: Tensor, rows: Tensor, shares: Tensor, label: int) -> int:
    n = len(rows)
    if name == "max_size":
        candidates = range(max(n - 1, 1))
        areas = [((b[2] - b[0]) * (b[3] - b[1])).item() for b in boxes]
        return max(candidates, key=lambda j: areas[j])
    if name == "max_score":
        return max(range(n), key=lambda j: rows[j, label].item())
    if name == "min_loss":
        return min(range(n), key=lambda j: summed_bce(rows[j], label).item())
    if name == "wsddn":
        return max(range(n), key=lambda j: (rows[j, label].sigmoid() * shares[j, label]).item())
    return {"first": 0, "image": n - 1}[name]


def loop_sigmoid_ce(logits_RK: Tensor, labels_R: Tensor, weight_C: Sequence[float]) -> Tensor:
    total = logits_RK.new_zeros(())
    for row, label in zip(logits_RK, labels_R.tolist(), strict=True):
        for c, weight in enumerate(weight_C):
            if weight:
                total = total + weight * bce(row[c], float(c == label))
    return total / max(len(labels_R), 1)


def loop_softmax_ce(logits_RK: Tensor, labels_R: Tensor, weight_K: Sequence[float]) -> Tensor:
    total, norm = logits_RK.new_zeros(()), 0.0
    for row, label in zip(logits_RK, labels_R.tolist(), strict=True):
        total = total - weight_K[label] * row.softmax(dim=0)[label].log()
        norm += weight_K[label]
    return total / norm if norm else total


def loop_box_loss(
    kind: str, deltas: Tensor, boxes: Tensor, targets: Tensor, labels: Tensor, num_classes: int
) -> Tensor:
    """With weights (10, 10, 5, 5) and beta 0."""
    total = deltas.new_zeros(())
    for d, box, target, label in zip(deltas, boxes, targets, labels.tolist(), strict=True):
        if not 0 <= label < num_classes:
            continue
        w, h = box[2] - box[0], box[3] - box[1]
        x, y = box[0] + w / 2, box[1] + h / 2
        tw, th = target[2] - target[0], target[3] - target[1]
        tx, ty = target[0] + tw / 2, target[1] + th / 2
        if kind == "smooth_l1":
            wanted = (10 * (tx - x) / w, 10 * (ty - y) / h, 5 * (tw / w).log(), 5 * (th / h).log())
            total = total + sum((p - q).abs() for p, q in zip(d, wanted, strict=True))
            continue
        limit = math.log(1000 / 16)
        px, py = x + d[0] / 10 * w, y + d[1] / 10 * h
        pw, ph = w * (d[2] / 5).clamp(max=limit).exp(), h * (d[3] / 5).clamp(max=limit).exp()
        p = (px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2)
        total = total + 1 - _giou(p, tuple(target))
    return total / max(len(labels), 1)


def _giou(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    def area(box: tuple[Tensor, ...]) -> Tensor:
        return (box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0)

    low, high = torch.maximum, torch.minimum
    inter = area((low(a[0], b[0]), low(a[1], b[1]), high(a[2], b[2]), high(a[3], b[3])))
    hull = area((high(a[0], b[0]), high(a[1], b[1]), low(a[2], b[2]), low(a[3], b[3])))
    union = area(a) + area(b) - inter
    return inter / union - (hull - union) / hull


# --- random inputs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelCase:
    """One batch with logits of both branches, in float64."""

    batch: ImageLabelBatch
    logits_RK: Tensor
    proposal_RK: Tensor


def random_boxes(count: int, generator: torch.Generator | None = None) -> Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 50
    size = torch.rand(count, 2, dtype=torch.float64, generator=generator) * 40 + 5
    return torch.cat([corner, corner + size], dim=1)


def label_case(
    num_boxes: Sequence[int], labels: Sequence[Sequence[int]], num_classes: int, seed: int = 0
) -> LabelCase:
    generator = torch.Generator().manual_seed(seed)
    total = sum(num_boxes)
    logits, proposal = (
        torch.randn(total, num_classes + 1, dtype=torch.float64, generator=generator) * 2
        for _ in range(2)
    )
    batch = ImageLabelBatch(
        boxes_R4=random_boxes(total, generator),
        num_boxes=list(num_boxes),
        labels=[list(image) for image in labels],
        image_sizes=[(100, 100)] * len(num_boxes),
        num_classes=num_classes,
    )
    return LabelCase(batch, logits.requires_grad_(), proposal.requires_grad_())


@st.composite
def label_cases(draw: st.DrawFn) -> LabelCase:
    """Batches with images without regions, without labels, with one region, with many labels."""
    num_classes = draw(st.integers(1, 5))
    num_boxes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    one_image = st.lists(st.integers(0, num_classes - 1), max_size=num_classes, unique=True)
    labels = [draw(one_image) for _ in num_boxes]
    return label_case(num_boxes, labels, num_classes, seed=draw(st.integers(0, 999)))
