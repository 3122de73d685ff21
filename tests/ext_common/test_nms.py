"""Class-wise NMS against one torchvision NMS per class, and against detectron2's inference."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from ext_common import nms as nms_module
from ext_common.nms import batched_nms_exact, detect_class_wise, multiclass_nms
from ext_common.nms_candidates import falling_bands


def clustered_boxes(count: int, *, size: float = 200.0, objects: int = 4, seed: int = 0) -> Tensor:
    """Boxes [count, 4] that overlap in groups."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(objects, 2, generator=generator) * size
    which = torch.randint(objects, (count,), generator=generator)
    middle = centres[which] + torch.randn(count, 2, generator=generator) * size / 30
    half = torch.rand(count, 2, generator=generator) * size / 10 + size / 10
    return torch.cat([middle - half, middle + half], dim=1)


def random_scores(rows: int, classes: int, *, levels: int = 0, seed: int = 0) -> Tensor:
    """Scores in (0, 1), mostly small; with ``levels`` only so many different ones."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.sigmoid(torch.randn(rows, classes, generator=generator) * 2 - 2)
    return (scores * levels).round() / levels if levels else scores


def class_by_class(
    boxes_N4: Tensor, scores_N: Tensor, ids_N: Tensor, threshold: float, limit: int
) -> list[int]:
    """One NMS per class; the plain loop that the fast ways must equal."""
    kept: list[int] = []
    for class_id in sorted(set(ids_N.tolist())):
        own = (ids_N == class_id).nonzero()[:, 0]
        kept += own[nms(boxes_N4[own], scores_N[own], threshold)].tolist()
    kept.sort(key=lambda index: (-float(scores_N[index]), index))
    return kept if limit < 0 else kept[:limit]


def multiclass_twin(
    boxes: Tensor, scores_RC: Tensor, score_threshold: float, iou_threshold: float, limit: int
) -> tuple[list[int], list[int]]:
    rows, classes = (scores_RC > score_threshold).nonzero(as_tuple=True)
    own = boxes[rows] if boxes.dim() == 2 else boxes[rows, classes]
    kept = class_by_class(own, scores_RC[rows, classes], classes, iou_threshold, limit)
    return rows[kept].tolist(), classes[kept].tolist()


def assert_equals_twin(
    boxes: Tensor, scores_RC: Tensor, score: float, iou: float, limit: int
) -> None:
    kept = multiclass_nms(
        boxes, scores_RC, score_threshold=score, iou_threshold=iou, max_detections=limit
    )
    rows, classes = multiclass_twin(boxes, scores_RC, score, iou, limit)
    assert kept.rows_K.tolist() == rows
    assert kept.classes_K.tolist() == classes
    assert torch.equal(kept.scores_K, scores_RC[rows, classes])


# --- multiclass_nms ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    classes=st.integers(1, 150),
    levels=st.sampled_from([0, 3, 20]),
    limit=st.sampled_from([-1, 0, 1, 5, 50, 3000]),
    score=st.sampled_from([-1.0, 0.0, 0.1, 0.6]),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.95]),
    own_boxes=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_multiclass_equals_the_loop(
    rows, classes, levels, limit, score, iou, own_boxes, seed
) -> None:
    boxes = clustered_boxes(rows * classes if own_boxes else rows, seed=seed)
    boxes = boxes.reshape(rows, classes, 4) if own_boxes else boxes
    scores = random_scores(rows, classes, levels=levels, seed=seed)
    assert_equals_twin(boxes, scores, score, iou, limit)


@pytest.mark.parametrize("limit", [30, 300])
def test_a_large_vocabulary(limit) -> None:
    boxes, scores = clustered_boxes(60, objects=6), random_scores(60, 1203)
    assert_equals_twin(boxes, scores, 0.3, 0.5, limit)


def test_work_goes_on_until_enough_survive() -> None:
    # the best 2,000 candidates are copies of one box of one class each; the others score less
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(400, 1)
    boxes[-3:] += torch.tensor([[100.0], [200.0], [300.0]])
    scores = torch.full((400, 6), 0.1)
    scores[:, :5] = 0.9 - torch.rand(400, 5) * 0.1
    scores[-3:] = 0.01 + torch.rand(3, 6) * 0.01
    assert_equals_twin(boxes, scores, 1e-4, 0.5, 20)
    kept = multiclass_nms(boxes, scores, score_threshold=1e-4, iou_threshold=0.5, max_detections=20)
    assert len(kept.rows_K) == 20
    assert set(kept.rows_K.tolist()) > {397, 398, 399}


def test_equal_scores_are_ordered_by_row_and_class() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 10]])
    scores = torch.full((3, 70), 0.5)
    kept = multiclass_nms(boxes, scores, score_threshold=0.1, iou_threshold=0.5, max_detections=80)
    assert kept.rows_K.tolist() == [0] * 70 + [1] * 10
    assert kept.classes_K.tolist() == [*range(70), *range(10)]


@pytest.mark.parametrize("iou", [0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.8])
def test_overlaps_equal_to_the_threshold(iou) -> None:
    # whole coordinates: many IoUs are simple fractions, some exactly the threshold
    generator = torch.Generator().manual_seed(3)
    corner = torch.randint(0, 6, (300, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(1, 7, (300, 2), generator=generator)], 1)
    boxes = boxes.float()
    scores = random_scores(300, 3)
    assert_equals_twin(boxes, scores, 0.0, iou, 600)


def test_boxes_without_area_do_not_overlap() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 0]])
    assert_equals_twin(boxes, random_scores(3, 4), 0.0, 0.5, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_keep_theirs(dtype) -> None:
    boxes = clustered_boxes(30)
    scores = random_scores(30, 80).to(dtype)
    kept = multiclass_nms(
        boxes.to(dtype), scores, score_threshold=0.0, iou_threshold=0.5, max_detections=40
    )
    rows, classes = multiclass_twin(boxes.to(dtype).float(), scores.float(), 0.0, 0.5, 40)
    assert (kept.rows_K.tolist(), kept.classes_K.tolist()) == (rows, classes)
    assert kept.scores_K.dtype == dtype


@pytest.mark.parametrize(
    ("rows", "classes", "limit"), [(0, 5, 10), (0, 5, -1), (4, 0, 10), (3, 5, 0)]
)
@pytest.mark.parametrize("own_boxes", [False, True])
def test_nothing_to_keep(rows, classes, limit, own_boxes) -> None:
    boxes = torch.rand(rows, classes, 4) if own_boxes else torch.rand(rows, 4)
    kept = multiclass_nms(
        boxes,
        torch.rand(rows, classes),
        score_threshold=0.0,
        iou_threshold=0.5,
        max_detections=limit,
    )
    assert [len(part) for part in kept] == [0, 0, 0]


def test_long_results_take_another_way_to_the_same_end(monkeypatch) -> None:
    boxes, scores = clustered_boxes(50), random_scores(50, 40, levels=50)

    def run():
        return multiclass_nms(
            boxes, scores, score_threshold=0.05, iou_threshold=0.5, max_detections=200
        )

    in_blocks = run()
    monkeypatch.setattr(nms_module, "_LONG", 10)
    one_by_one = run()
    assert all(torch.equal(a, b) for a, b in zip(in_blocks, one_by_one, strict=True))


# --- batched_nms_exact ------------------------------------------------------------------------


def by_moving_classes_apart(boxes: Tensor, scores: Tensor, ids: Tensor, iou: float) -> Tensor:
    """The usual trick, in float32."""
    return nms(boxes + (ids.float() * (boxes.max() + 1))[:, None], scores, iou)


@pytest.mark.parametrize("limit", [-1, 100])
def test_large_ids_and_coordinates(limit) -> None:
    boxes = clustered_boxes(600, size=30_000.0, objects=12)
    ids = torch.randint(2**14, 2**14 + 8, (600,))
    scores = torch.rand(600)
    expected = class_by_class(boxes, scores, ids, 0.5, limit)
    trick = by_moving_classes_apart(boxes, scores, ids, 0.5)
    assert trick[: len(expected)].tolist() != expected  # else this case would show nothing
    assert batched_nms_exact(boxes, scores, ids, 0.5, limit).tolist() == expected


def test_large_class_ids_of_shared_boxes() -> None:
    boxes = clustered_boxes(40, size=20_000.0)
    scores = torch.zeros(40, 22_047)
    scores[:, -30:] = random_scores(40, 30)
    assert_equals_twin(boxes, scores, 0.02, 0.5, 300)
    rows, classes = (scores > 0.02).nonzero(as_tuple=True)
    trick = by_moving_classes_apart(boxes[rows], scores[rows, classes], classes, 0.5)[:300]
    expected = multiclass_twin(boxes, scores, 0.02, 0.5, 300)
    assert (rows[trick].tolist(), classes[trick].tolist()) != expected


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 1500),
    groups=st.integers(1, 300),
    levels=st.sampled_from([0, 10]),
    limit=st.sampled_from([-1, 0, 7, 400]),
    seed=st.integers(0, 10_000),
)
def test_batched_equals_the_loop(count, groups, levels, limit, seed) -> None:
    boxes = clustered_boxes(count, seed=seed)
    ids = torch.randint(-groups, groups, (count,), generator=torch.Generator().manual_seed(seed))
    ids = ids * 2**33  # any integer will do
    scores = random_scores(count, 1, levels=levels, seed=seed)[:, 0]
    expected = class_by_class(boxes, scores, ids, 0.4, limit)
    assert batched_nms_exact(boxes, scores, ids, 0.4, limit).tolist() == expected


def test_a_chain_of_overlaps_is_followed_to_its_end() -> None:
    # each box overlaps its neighbours only: every second one survives, and only the first decides
    left = torch.arange(500.0) * 6
    boxes = torch.stack([left, torch.zeros(500), left + 10, torch.full((500,), 10.0)], dim=1)
    scores = torch.linspace(1, 0.5, 500)
    ids = torch.zeros(500, dtype=torch.long)
    kept = batched_nms_exact(boxes, scores, ids, 0.2, 500)
    assert kept.tolist() == list(range(0, 500, 2))


# --- falling_bands ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 12),
    classes=st.sampled_from([0, 1, 63, 64, 65, 128, 200]),
    levels=st.sampled_from([0, 1, 2, 30]),
    first=st.integers(1, 40),
    threshold=st.sampled_from([-1.0, 0.0, 0.2, 2.0]),
    seed=st.integers(0, 10_000),
)
def test_bands_hold_every_entry_once_and_in_order(
    rows, classes, levels, first, threshold, seed
) -> None:
    scores = random_scores(rows, classes + 1, levels=levels, seed=seed)[:, :-1]  # not contiguous
    bands = list(falling_bands(scores, threshold, first))
    every = (scores > threshold).nonzero()
    order = scores[scores > threshold].argsort(descending=True, stable=True)
    expected = every[order].tolist()
    found = [
        [row, column]
        for band in bands
        for row, column in zip(band.boxes_K.tolist(), band.classes_K.tolist(), strict=True)
    ]
    assert found == expected
    filled = [band.scores_K for band in bands if len(band)]
    for better, worse in zip(filled, filled[1:], strict=False):
        assert better.min() > worse.max()
    assert len(bands[0]) >= min(first, len(expected), rows * -(-classes // 64))


def test_the_first_band_is_short_where_scores_differ() -> None:
    scores = random_scores(300, 1203)
    first = next(iter(falling_bands(scores, 1e-4, 600)))
    assert 600 <= len(first) < 3000


# --- detect_class_wise ------------------------------------------------------------------------


def detections(boxes, scores, sizes, **options):
    settings_ = {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100, **options}
    return detect_class_wise(boxes, scores, sizes, **settings_)


@pytest.mark.parametrize("limit", [100, 5, -1])
@pytest.mark.parametrize("own_boxes", [False, True])
def test_detections_equal_detectron2(own_boxes, limit) -> None:
    num_classes, sizes, counts = 60, [(150, 180), (90, 300), (50, 50)], [70, 90, 0]
    boxes = [
        clustered_boxes(count * (num_classes if own_boxes else 1), seed=count).reshape(count, -1)
        if count
        else torch.zeros(0, 4 * (num_classes if own_boxes else 1))
        for count in counts
    ]
    scores = [random_scores(count, num_classes + 1, seed=count) for count in counts]
    before = [boxes_RX.clone() for boxes_RX in boxes]
    results, sources = detections(boxes, scores, sizes, max_detections=limit)
    assert all(torch.equal(a, b) for a, b in zip(boxes, before, strict=True))
    expected, expected_rows = fast_rcnn_inference(before, scores, sizes, 0.05, 0.5, limit)
    for found, wanted, source, row in zip(results, expected, sources, expected_rows, strict=True):
        assert found.image_size == wanted.image_size
        assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
        assert torch.equal(found.scores, wanted.scores)
        assert torch.equal(found.pred_classes, wanted.pred_classes)
        assert torch.equal(source, row)
    assert len(results[0]) > 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["box", "score", "background"])
def test_rows_that_are_not_finite_are_dropped(where, bad) -> None:
    boxes, scores = clustered_boxes(80), random_scores(80, 31)
    if where == "box":
        boxes[3, 2] = bad
    else:
        scores[3, 7 if where == "score" else -1] = bad
    (found,), (rows,) = detections([boxes], [scores], [(200, 200)])
    ((wanted,), _) = fast_rcnn_inference([boxes.clone()], [scores], [(200, 200)], 0.05, 0.5, 100)
    assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    assert torch.equal(found.pred_classes, wanted.pred_classes)
    assert 3 not in rows.tolist()
    assert torch.equal(scores[rows, found.pred_classes], found.scores)  # rows of the input


def test_huge_but_finite_values_stay() -> None:
    boxes, scores = clustered_boxes(4, objects=1), torch.full((4, 3), 0.1)
    boxes[:, 2:] = 3e38  # their sum is not a float32
    (found,), _ = detections([boxes], [scores], [(200, 200)], nms_threshold=1.0)
    assert len(found) == 8
    assert (found.pred_boxes.tensor <= 200).all()
