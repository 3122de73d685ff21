"""From a precision table to the published numbers: AP, per class, per class group.

Shapes: T IoU thresholds, R recall points, K classes (contiguous order), A area ranges (all, small,
medium, large). Precision is in [0, 1], -1 where a class has no ground truth in the area range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ext_common.evaluation.ground_truth import GroundTruth
from ext_common.evaluation.matching import IOU_THRESHOLDS_T


def summarise_precision(
    precision_TRKA: np.ndarray, truth: GroundTruth, *, with_frequency: bool = False
) -> dict[str, float]:
    """Metrics in percent, with the names of detectron2's evaluators.

    ``AP`` (IoU .50:.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``; with ``with_frequency``
    also ``APr``, ``APc``, ``APf``; ``AP-group-<name>`` and ``AP50-group-<name>`` for every class
    group; ``AP-<class>``. A class without ground truth is left out of every mean; a number without
    any class is NaN. A class with ground truth and no detection counts as 0.
    """
    at_50, at_75 = (int(np.argmin(np.abs(IOU_THRESHOLDS_T - iou))) for iou in (0.5, 0.75))
    ap_K = _class_means(precision_TRKA[..., 0])
    ap50_K = _class_means(precision_TRKA[at_50 : at_50 + 1, ..., 0])
    results = {
        "AP": mean_percent(ap_K),
        "AP50": mean_percent(ap50_K),
        "AP75": mean_percent(_class_means(precision_TRKA[at_75 : at_75 + 1, ..., 0])),
        "APs": mean_percent(_class_means(precision_TRKA[..., 1])),
        "APm": mean_percent(_class_means(precision_TRKA[..., 2])),
        "APl": mean_percent(_class_means(precision_TRKA[..., 3])),
    }
    if with_frequency:
        frequency_K = np.array(truth.frequencies)
        for letter in "rcf":
            results[f"AP{letter}"] = mean_percent(ap_K[frequency_K == letter])
    results |= group_means(ap_K, truth.groups, "AP")
    results |= group_means(ap50_K, truth.groups, "AP50")
    return results | per_class(ap_K, truth.class_names, "AP")


def group_means(
    values_K: np.ndarray, groups: Mapping[str, Sequence[int]], metric: str
) -> dict[str, float]:
    """``<metric>-group-<name>``: mean over the group's classes that have a number, in percent."""
    return {
        f"{metric}-group-{name}": mean_percent(values_K[list(indices)])
        for name, indices in groups.items()
    }


def per_class(values_K: np.ndarray, names: Sequence[str], metric: str) -> dict[str, float]:
    """``<metric>-<class>`` in percent."""
    return {
        f"{metric}-{name}": float(value * 100)
        for name, value in zip(names, values_K.tolist(), strict=True)
    }


def _class_means(precision_TRK: np.ndarray) -> np.ndarray:
    """Mean precision of every class in [0, 1], NaN where it has no ground truth: [K]."""
    # all thresholds and recall points of a class are -1 together
    means_K = precision_TRK.mean(axis=(0, 1))
    return np.where((precision_TRK > -1).any(axis=(0, 1)), means_K, np.nan)


def mean_percent(values_K: np.ndarray) -> float:
    """Mean over the classes that have a number (not NaN) in percent; NaN where none has."""
    numbers = values_K[~np.isnan(values_K)]
    return float(numbers.mean() * 100) if numbers.size else float("nan")
