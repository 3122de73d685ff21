"""Soft-NMS: golden values, the loop of the paper as a twin, and its limits."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ext_common.errors import ConfigError
from regionclip_ext.modeling.detections import DetectionOptions, detect
from regionclip_ext.modeling.soft_nms import METHODS, SoftNMSOptions, soft_nms
from tests.golden_cases import golden_arrays


def plain_soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, options: SoftNMSOptions
) -> tuple[list[int], list[float]]:
    """Every box of every class in every round."""
    overlap = pairwise_iou(Boxes(boxes), Boxes(boxes)) * (classes[:, None] == classes)
    scores, left = scores.clone(), list(range(len(scores)))
    keep, lowered = [], []
    while left:
        best = max(left, key=lambda i: (scores[i].item(), -i))
        keep.append(best)
        lowered.append(scores[best].item())
        left.remove(best)
        for i in left:
            scores[i] = scores[i] * options.factor(overlap[best, i])
        left = [i for i in left if scores[i] > options.prune]
    return keep, lowered


def _case(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    corner = torch.rand(count, 2) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 30], dim=1)
    return boxes, torch.rand(count), torch.randint(classes, (count,))


@pytest.mark.golden
def test_golden_soft_nms() -> None:
    arrays = golden_arrays("regionclip", "soft_nms.npz")
    cases = sorted({key.split("/")[0] for key in arrays})
    assert cases
    for case in cases:
        get = {k.split("/")[1]: v for k, v in arrays.items() if k.startswith(f"{case}/")}
        options = SoftNMSOptions(
            method=str(get["method"]),
            sigma=float(get["sigma"]),
            linear_threshold=float(get["linear_threshold"]),
            prune=float(get["prune"]),
        )
        boxes, scores, classes = (torch.from_numpy(get[k]) for k in ("boxes", "scores", "classes"))
        keep, lowered = soft_nms(boxes, scores, classes, options)
        assert keep.tolist() == get["keep"].tolist()
        torch.testing.assert_close(lowered, torch.from_numpy(get["new_scores"]), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 5), st.sampled_from(METHODS),
    st.sampled_from([0.001, 0.3]),
)  # fmt: skip
def test_all_classes_at_once_are_the_loop_over_all_boxes(
    seed: int, count: int, classes: int, method: str, prune: float
) -> None:
    boxes, scores, ids = _case(seed, count, classes)
    options = SoftNMSOptions(method=method, linear_threshold=0.4, prune=prune)
    keep, lowered = soft_nms(boxes, scores, ids, options)
    expected_keep, expected = plain_soft_nms(boxes, scores, ids, options)
    assert keep.tolist() == expected_keep
    torch.testing.assert_close(lowered, torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("limit", [1, 3, 8, 100])
def test_stopping_early_gives_the_first_of_all(limit: int) -> None:
    boxes, scores, ids = _case(1, 60, 6)
    options = SoftNMSOptions()
    keep, lowered = soft_nms(boxes, scores, ids, options)
    first, first_scores = soft_nms(boxes, scores, ids, options, limit)
    assert first.tolist() == keep[:limit].tolist()
    torch.testing.assert_close(first_scores, lowered[:limit])


@pytest.mark.parametrize("width", [4, 12], ids=["one box", "a box per class"])
@pytest.mark.parametrize("soft", [None, SoftNMSOptions()], ids=["hard", "soft"])
def test_an_image_without_regions_has_no_detections(
    width: int, soft: SoftNMSOptions | None
) -> None:
    options = DetectionOptions(soft=soft)
    found, rows = detect(torch.zeros(0, width), torch.zeros(0, 4), (20, 30), options)
    assert len(found) == len(rows) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)


def test_no_boxes_and_an_unknown_method() -> None:
    keep, lowered = soft_nms(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), SoftNMSOptions()
    )
    assert len(keep) == len(lowered) == 0
    with pytest.raises(ConfigError, match="SOFT_NMS_METHOD"):
        SoftNMSOptions(method="exponential")
