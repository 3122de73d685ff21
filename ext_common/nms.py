"""Class-wise non-maximum suppression for large vocabularies: true per-class NMS, only faster.

The usual way moves the boxes of every class to a place of their own and runs one NMS over all
candidates. In float32 that rounds coordinates, more the larger the class ids are, so other boxes are
kept; and it visits every candidate. Here classes are compared as integers and nothing moves.

Greedy NMS decides a box from better boxes alone. So candidates are taken by falling score, band after
band, and the work ends when enough of them have survived: the rest cannot change the answer. Where
the classes share their boxes, one table of overlaps serves all of them.

Shapes: R regions, C classes, N boxes, K kept detections, A and B candidates of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou, nms

from ext_common.nms_candidates import Candidates, falling_bands, joined

_BLOCK = 512  # candidates decided together
_LONG = 2000  # more detections than this are found class by class


class KeptDetections(NamedTuple):
    """Result of :func:`multiclass_nms`, by falling score (equal ones by row, then class).

    Attributes:
        rows_K: int64 region numbers.
        classes_K: int64 class numbers.
        scores_K: in the type of the scores given.
    """

    rows_K: Tensor
    classes_K: Tensor
    scores_K: Tensor


def multiclass_nms(
    boxes: Tensor,
    scores_RC: Tensor,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> KeptDetections:
    """The best detections after NMS within every class.

    Equal to running ``torchvision.ops.nms`` for every class on the entries above the threshold and
    keeping the best. On a GPU the host waits a few times per block of candidates, never per class.

    Args:
        boxes: ``[R, 4]`` XYXY, the same for all classes, or ``[R, C, 4]``; finite.
        scores_RC: finite, without a background column.
        score_threshold: candidates score above this.
        iou_threshold: 0 to 1; a box is dropped whose IoU with a better one kept is above this.
        max_detections: how many to keep; negative = all.

    Returns:
        The kept regions and classes.
    """
    num_classes = scores_RC.shape[1]
    limit = max_detections if max_detections >= 0 else None
    first = scores_RC.numel() if limit is None else max(2 * limit, 1)
    bands = falling_bands(scores_RC, score_threshold, first)
    if boxes.dim() == 3:
        flat_N4 = boxes.reshape(-1, 4)
        bands = (
            Candidates(band.boxes_K * num_classes + band.classes_K, band.classes_K, band.scores_K)
            for band in bands
        )
        kept = _class_wise(bands, flat_N4, iou_threshold, limit)
        return KeptDetections(kept.boxes_K // num_classes, kept.classes_K, kept.scores_K)
    kept = _class_wise(bands, boxes, iou_threshold, limit, share_boxes=True)
    return KeptDetections(kept.boxes_K, kept.classes_K, kept.scores_K)


def batched_nms_exact(
    boxes_N4: Tensor,
    scores_N: Tensor,
    ids_N: Tensor,
    iou_threshold: float,
    max_detections: int = -1,
) -> Tensor:
    """NMS within groups of boxes that each have a score and a group of their own.

    Like ``torchvision.ops.batched_nms``, without its rounding and its loop over all groups.

    Args:
        boxes_N4: XYXY, finite.
        scores_N: finite.
        ids_N: integer group (class, level, ...) of every box; any values.
        iou_threshold: 0 to 1.
        max_detections: how many to keep; negative = all.

    Returns:
        int64 numbers of the kept boxes by falling score (equal ones by number).
    """
    every_N = torch.arange(len(scores_N), device=scores_N.device)
    candidates = Candidates(every_N, ids_N, scores_N).sorted_by_score()
    limit = max_detections if max_detections >= 0 else None
    return _class_wise([candidates], boxes_N4, iou_threshold, limit).boxes_K


def detect_class_wise(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
) -> tuple[list[Instances], list[Tensor]]:
    """Detections of a batch: detectron2's ``fast_rcnn_inference`` for large vocabularies.

    Rows with a value that is not finite are dropped, boxes are clipped to the image (the tensors
    given are left as they are), then come the threshold, NMS within every class and the best.

    Args:
        boxes: per image ``[R, 4]`` XYXY pixels, or ``[R, 4 C]`` with a box for every class.
        scores: per image ``[R, C + 1]``; the last column is the background.
        image_sizes: per image (height, width).
        score_threshold: detections score above this.
        nms_threshold: IoU.
        max_detections: per image; negative = all.

    Returns:
        Per image ``pred_boxes``, ``scores`` and ``pred_classes`` by falling score, and per image
        the rows of the input that the detections come from.
    """
    results, sources = [], []
    for boxes_RX, scores_RK, size in zip(boxes, scores, image_sizes, strict=True):
        finite_F = _finite_rows(boxes_RX, scores_RK)
        if finite_F is not None:
            boxes_RX, scores_RK = boxes_RX[finite_F], scores_RK[finite_F]
        num_classes = scores_RK.shape[1] - 1
        clipped = _clip(boxes_RX, size)
        shared = boxes_RX.shape[1] == 4
        kept = multiclass_nms(
            clipped if shared else clipped.reshape(-1, num_classes, 4),
            scores_RK[:, :-1],
            score_threshold=score_threshold,
            iou_threshold=nms_threshold,
            max_detections=max_detections,
        )
        which = kept.rows_K if shared else kept.rows_K * num_classes + kept.classes_K
        found = Instances(size)
        found.pred_boxes = Boxes(clipped.reshape(-1, 4)[which])
        found.scores = kept.scores_K
        found.pred_classes = kept.classes_K
        results.append(found)
        sources.append(kept.rows_K if finite_F is None else finite_F[kept.rows_K])
    return results, sources


def _class_wise(
    bands: Iterable[Candidates],
    boxes_N4: Tensor,
    iou_threshold: float,
    limit: int | None,
    *,
    share_boxes: bool = False,
) -> Candidates:
    """The first ``limit`` survivors of bands of falling score."""
    boxes_N4 = boxes_N4.float()  # as detectron2
    if limit is None or limit > _LONG:
        return _class_by_class(joined(list(bands)), boxes_N4, iou_threshold, limit)
    limit_iou = _comparable(iou_threshold, boxes_N4.device)
    table_NN = box_iou(boxes_N4, boxes_N4) > limit_iou if share_boxes else None

    def overlap(a: Candidates, b: Candidates) -> Tensor:
        same_AB = a.classes_K[:, None] == b.classes_K
        if table_NN is not None:
            return same_AB & table_NN.index_select(0, a.boxes_K).index_select(1, b.boxes_K)
        return same_AB & (box_iou(boxes_N4[a.boxes_K], boxes_N4[b.boxes_K]) > limit_iou)

    return _first_survivors(_blocks(bands), overlap, limit)


def _blocks(bands: Iterable[Candidates]) -> Iterator[Candidates]:
    for band in bands:
        for start in range(0, max(len(band), 1), _BLOCK):
            yield band.take(slice(start, start + _BLOCK))


def _first_survivors(
    blocks: Iterator[Candidates],
    overlap: Callable[[Candidates, Candidates], Tensor],
    limit: int,
) -> Candidates:
    kept = next(blocks)
    kept = kept.take(_survivors(overlap(kept, kept)))
    while len(kept) < limit and (block := next(blocks, None)) is not None:
        block = block.take(~overlap(block, kept).any(dim=1))
        kept = joined([kept, block.take(_survivors(overlap(block, block)))])
    return kept.take(slice(0, limit))


def _survivors(overlap_BB: Tensor) -> Tensor:
    """bool ``[B]``: greedy NMS over candidates by falling score, all at once.

    A candidate survives if no better one does that overlaps it. Guessing that all survive and
    applying this again and again settles the n-th link of every chain of overlaps in round n, and
    what no longer changes is the one answer there is.
    """
    better_BB = overlap_BB.tril(diagonal=-1).float()
    keep_B = better_BB.new_ones(len(better_BB))
    while True:
        again_B = (better_BB @ keep_B == 0).float()
        if torch.equal(again_B, keep_B):
            return keep_B.bool()
        keep_B = again_B


def _class_by_class(
    candidates: Candidates, boxes_N4: Tensor, iou_threshold: float, limit: int | None
) -> Candidates:
    """One torchvision NMS per class that occurs; for results too long to compare with each other."""
    by_class_K = candidates.classes_K.argsort(stable=True)  # best first within each class
    counts = candidates.classes_K[by_class_K].unique_consecutive(return_counts=True)[1]
    boxes_K4, scores_K = boxes_N4[candidates.boxes_K], candidates.scores_K.float()
    kept = [
        own_K[nms(boxes_K4[own_K], scores_K[own_K], iou_threshold)]
        for own_K in by_class_K.split(counts.tolist())
    ]
    positions_K = torch.cat([by_class_K[:0], *kept]).sort().values
    return candidates.take(positions_K[:limit])


def _comparable(iou_threshold: float, device: torch.device) -> float:
    """The threshold that decides float32 overlaps as torchvision does on this device.

    Its CPU kernel compares in float64: equal to the next lower float32. Its CUDA kernel rounds.
    """
    nearest = torch.tensor(iou_threshold, dtype=torch.float32)
    if device.type == "cpu" and nearest.item() > iou_threshold:
        nearest = torch.nextafter(nearest, torch.zeros(()))
    return nearest.item()


def _finite_rows(boxes_RX: Tensor, scores_RK: Tensor) -> Tensor | None:
    """Numbers of the rows whose values are all finite; None = all of them are."""
    # a finite sum has finite terms; looking at every value takes ten times as long
    total_R = boxes_RX.sum(dim=1, dtype=torch.float32) + scores_RK.sum(dim=1, dtype=torch.float32)
    if bool(total_R.isfinite().all()):
        return None
    return (boxes_RX.isfinite().all(dim=1) & scores_RK.isfinite().all(dim=1)).nonzero()[:, 0]


def _clip(boxes_RX: Tensor, size: tuple[int, int]) -> Tensor:
    boxes_RB4 = boxes_RX.unflatten(1, (-1, 4))
    height, width = size
    limit = boxes_RX.new_tensor([width, height, width, height])
    return torch.minimum(boxes_RB4.clamp(min=0), limit).flatten(1)
