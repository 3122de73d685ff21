"""Open-vocabulary COCO: AP50 of base, novel and all of the 65 classes (specification 5.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ext_common.evaluation.coco import CocoEvaluator
from ext_common.evaluation.ground_truth import GroundTruth

NOVEL_NAMES = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
    *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
)
"""The 17 classes that have no training boxes."""

NUM_CLASSES = 65  # 48 base and 17 novel


class OvdCocoEvaluator(CocoEvaluator):
    """COCO's AP and, where the test set has exactly the 65 classes, AP50 by split.

    ``AP50_split_target`` (novel), ``AP50_split_base`` and ``AP50_split_all`` are shares of 1 as in
    the published log, but returned with the results (pitfall 11.23); ``AP50-group-base`` and
    ``AP50-group-novel`` are the same in percent.
    """

    kind = "coco"

    def score(
        self, truth: GroundTruth, detections: Sequence[Mapping[str, Any]], task: str
    ) -> dict[str, float]:
        """See :meth:`ext_common.evaluation.base.DetectionEvaluator.score`."""
        groups = split_groups(truth.class_names)
        if not groups:
            return super().score(truth, detections, task)
        truth = dataclasses.replace(truth, groups={**truth.groups, **groups})
        results = super().score(truth, detections, task)
        results["AP50_split_target"] = results["AP50-group-novel"] / 100
        results["AP50_split_base"] = results["AP50-group-base"] / 100
        results["AP50_split_all"] = results["AP50"] / 100
        return results


def split_groups(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Base and novel classes of the 65 as contiguous indices; empty for another class list."""
    novel = tuple(index for index, name in enumerate(names) if name in NOVEL_NAMES)
    if len(names) != NUM_CLASSES or len(novel) != len(NOVEL_NAMES):
        return {}
    base = tuple(index for index in range(len(names)) if index not in novel)
    return {"base": base, "novel": novel}
