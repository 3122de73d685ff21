"""The vectorised matching against the rule written as loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ext_common.evaluation.matching import IOU_THRESHOLDS_T, match_by_score, outside_areas


def match_with_loops(iou_DG, ignored_AG, thresholds_T) -> np.ndarray:
    match = np.full((len(thresholds_T), len(ignored_AG), len(iou_DG)), -1)
    for t, threshold in enumerate(thresholds_T):
        for a, ignored_G in enumerate(ignored_AG):
            taken = set()
            for d, iou_G in enumerate(iou_DG):
                for wanted in (False, True):  # ignored objects only as a last resort
                    best, best_iou = -1, min(threshold, 1 - 1e-10)
                    for g, iou in enumerate(iou_G):
                        if g not in taken and ignored_G[g] == wanted and iou >= best_iou:
                            best, best_iou = g, iou
                    if best >= 0:
                        match[t, a, d] = best
                        taken.add(best)
                        break
    return match


@st.composite
def problems(draw):
    dets, gts = draw(st.integers(0, 7)), draw(st.integers(0, 6))
    # few values, so that equal IoUs and values on a threshold are common
    iou = st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.6, 0.75, 0.9, 0.95, 1.0])
    iou_DG = draw(st.lists(iou, min_size=dets * gts, max_size=dets * gts))
    ignored = draw(st.lists(st.booleans(), min_size=2 * gts, max_size=2 * gts))
    return np.array(iou_DG).reshape(dets, gts), np.array(ignored, dtype=bool).reshape(2, gts)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_equals_the_loops(problem):
    iou_DG, ignored_AG = problem
    expected = match_with_loops(iou_DG, ignored_AG, IOU_THRESHOLDS_T)
    assert np.array_equal(match_by_score(iou_DG, ignored_AG, IOU_THRESHOLDS_T), expected)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_an_object_is_matched_at_most_once(problem):
    iou_DG, ignored_AG = problem
    match_TAD = match_by_score(iou_DG, ignored_AG, IOU_THRESHOLDS_T)
    for match_D in match_TAD.reshape(20, len(iou_DG)):
        used = match_D[match_D >= 0]
        assert len(used) == len(set(used.tolist()))


def test_area_limits_belong_to_both_neighbours():
    outside_AN = outside_areas(np.array([0.0, 32**2, 32**2 + 1, 96**2, 96**2 + 1]))
    assert outside_AN.tolist() == [
        [False] * 5,
        [False, False, True, True, True],
        [True, False, False, False, True],
        [True, True, True, False, False],
    ]
