"""Whether two implementations computed the same."""

from __future__ import annotations

import torch

from benchmarks.case import Results


def largest_difference(actual: Results, expected: Results) -> float:
    """Largest deviation over all results, each as a share of its own largest magnitude.

    A missing result, another shape or a value that is not finite counts as infinitely different.
    """
    if actual.keys() != expected.keys():
        return float("inf")
    return max(_difference(actual[name], expected[name]) for name in expected)


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    wanted = expected.double()
    gap = (actual.double() - wanted).abs().max().item()
    scale = wanted.abs().max().item()
    if not (gap < float("inf") and scale < float("inf")):
        return float("inf")
    return gap / scale if scale else gap
