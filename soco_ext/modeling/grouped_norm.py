"""Batch norm within groups of one large batch.

The released code runs its networks once per view, and its head once per box set and level; each run
has its own batch statistics (specification 3.1). Convolutions and matrix products do not care and
run once on all groups; the norm sees one group after the other, so results, gradients and running
statistics are those of separate runs.

Head, projector and predictor say the number of groups (:func:`grouped_norm`). The encoder's blocks
are torchvision's, which pass nothing on: their norms are told (:func:`norms_in_groups`).

Shapes: G groups of R rows each, ``x`` [G * R, C] or [G * R, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def grouped_norm(norm: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Normalise every group with its own statistics.

    Args:
        norm: any batch norm; its running statistics are updated once per group, in order.
        x: rows of one group are consecutive.
        groups: G; must divide the rows.
    """
    return _group_by_group(norm, x, groups if norm.training else 1)


class NormOfGroups(nn.Module):
    """A batch norm (the other base of a subclass) that can be told to take several groups.

    Attributes:
        groups: G of what comes next, see :func:`norms_in_groups`.
    """

    groups = 1

    def forward(self, x: Tensor) -> Tensor:
        """As the batch norm, group by group."""
        return _group_by_group(super().forward, x, self.groups if self.training else 1)


class GroupedBatchNorm2d(NormOfGroups, nn.BatchNorm2d):
    """Batch norm of encoder and pyramid."""


class GroupedSyncBatchNorm(NormOfGroups, nn.SyncBatchNorm):
    """The same between processes."""


@contextmanager
def norms_in_groups(modules: Iterable[nn.Module], groups: int) -> Iterator[None]:
    """Inside, every :class:`NormOfGroups` of the modules takes its batch as so many groups."""
    norms = [m for module in modules for m in module.modules() if isinstance(m, NormOfGroups)]
    try:
        for norm in norms:
            norm.groups = groups
        yield
    finally:
        for norm in norms:
            norm.groups = 1


def _group_by_group(norm: Callable[[Tensor], Tensor], x: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return norm(x)
    return torch.cat([norm(part) for part in x.chunk(groups)])
