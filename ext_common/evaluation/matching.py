"""Greedy assignment of scored detections to ground truth, for all thresholds and areas at once.

Shapes: D detections in descending order of score, G ground-truth objects, T IoU thresholds, A area
ranges.
"""

from __future__ import annotations

import numpy as np

AREA_RANGES_A2 = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Inclusive ranges in square pixels: all, small, medium, large (COCO and LVIS)."""

IOU_THRESHOLDS_T = np.linspace(0.5, 0.95, 10)
RECALL_POINTS_R = np.linspace(0.0, 1.0, 101)


def outside_areas(areas_N: np.ndarray) -> np.ndarray:
    """Which objects lie outside each range of :data:`AREA_RANGES_A2`: bool [A, N]."""
    low_A1, high_A1 = AREA_RANGES_A2[:, :1], AREA_RANGES_A2[:, 1:]
    return (areas_N < low_A1) | (areas_N > high_A1)


def match_by_score(
    iou_DG: np.ndarray, ignored_AG: np.ndarray, thresholds_T: np.ndarray
) -> np.ndarray:
    """The matching rule of COCO and LVIS.

    In order of score, a detection takes the free object with the largest IoU that reaches the
    threshold; an ignored object only where no other qualifies; the later of equal ones.

    Args:
        iou_DG: IoU in [0, 1].
        ignored_AG: objects that do not count in an area range (bool).
        thresholds_T: IoU thresholds in (0, 1].

    Returns:
        Index of the matched object per threshold, range and detection, -1 for none: int32 [T, A, D].
    """
    num_dets, num_gts = iou_DG.shape
    limits_T = np.minimum(thresholds_T, 1 - 1e-10)
    shape_TA = (len(limits_T), len(ignored_AG))
    match_TAD = np.full((*shape_TA, num_dets), -1, dtype=np.int32)
    if num_gts == 0 or num_dets == 0:
        return match_TAD
    free_TAG = np.ones((*shape_TA, num_gts), dtype=bool)
    # most detections reach no object at all; only the others need the sequential part
    for det in np.flatnonzero(iou_DG.max(axis=1) >= limits_T.min()):
        iou_G = iou_DG[det]
        open_TAG = free_TAG & (iou_G >= limits_T[:, None, None])
        real_TAG = open_TAG & ~ignored_AG
        pool_TAG = np.where(real_TAG.any(axis=2, keepdims=True), real_TAG, open_TAG)
        value_TAG = np.where(pool_TAG, iou_G, -1.0)
        best_TA = num_gts - 1 - value_TAG[:, :, ::-1].argmax(axis=2)
        t, a = np.nonzero(pool_TAG.any(axis=2))
        match_TAD[t, a, det] = best_TA[t, a]
        free_TAG[t, a, best_TA[t, a]] = False
    return match_TAD
