"""Batch norm within groups of one large batch.

The released code runs its head once for every box set and level, and each run has its own batch
statistics (specification 3.1). Convolutions and matrix products do not care and run once on all
groups; the norm sees one group after the other, so results, gradients and running statistics are
those of separate runs.

Shapes: G groups of R rows each, ``x`` [G * R, C] or [G * R, C, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def grouped_norm(norm: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Normalise every group with its own statistics.

    Args:
        norm: any batch norm; its running statistics are updated once per group, in order.
        x: rows of one group are consecutive.
        groups: G; must divide the rows.
    """
    if groups == 1 or not norm.training:
        normed: Tensor = norm(x)
        return normed
    return torch.cat([norm(part) for part in x.chunk(groups)])
