"""No loss asks the device for a value: on the meta device there are none, so asking fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detic_ext.losses.box_classification import BoxClassificationLoss
from detic_ext.losses.box_regression import KINDS, BoxRegressionLoss
from detic_ext.losses.caption import CaptionLoss
from detic_ext.losses.classify import KnownLogits
from detic_ext.losses.dynamic_classes import sample_class_subset
from detic_ext.losses.factory import IMAGE_LABEL_LOSSES, build_image_label_loss
from detic_ext.losses.image_label_batch import ImageLabelBatch
from detic_ext.losses.statistics import image_label_statistics


def _meta(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta", requires_grad=True)


def _labels(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device="meta")


def _batch() -> ImageLabelBatch:
    boxes = _meta(9, 4).detach()
    return ImageLabelBatch(boxes, [4, 0, 5], [[0, 2], [1], [1]], [(9, 9)] * 3, num_classes=7)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"federated_size": 3},
        {"federated_size": 3, "ignore_unseen": True},
        {"softmax": True, "ignore_unseen": True},
        {"softmax": True, "federated_size": 3},
    ],
)
def test_classification(options: dict[str, object]) -> None:
    loss = BoxClassificationLoss(**options)(
        KnownLogits(_meta(6, 8)), _labels(6), freq_weight_C=_meta(7).detach(), max_present=4
    )
    loss.backward()
    assert loss.shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_regression(kind: str) -> None:
    loss = BoxRegressionLoss(kind=kind)(
        _meta(6, 4), _meta(6, 4).detach(), _meta(6, 4).detach(), _labels(6), 7
    )
    loss.backward()
    assert loss.shape == ()


@pytest.mark.parametrize("name", IMAGE_LABEL_LOSSES)
def test_image_labels_and_statistics(name: str) -> None:
    batch = _batch()
    result = build_image_label_loss(name)(batch, KnownLogits(_meta(9, 8)), _meta(9, 8))
    result.loss.backward()
    stats = image_label_statistics(batch, result)
    assert len(stats) == 7
    assert {value.shape for value in stats.values()} == {torch.Size([])}


def test_captions_and_dynamic_classes() -> None:
    loss, batch = CaptionLoss(), _batch()
    logits = _meta(9, 3)
    loss(logits[loss.select(batch)], batch).backward()
    subset = sample_class_subset([1, 2], 4, 7)
    assert subset.map_labels(_labels(6)).shape == (6,)
    assert subset.columns(torch.device("meta")).shape == (5,)
