"""Rows of all processes in one tensor, with gradients (specification 3.3, GATHER_GPUS).

Shapes: B rows of this process (may differ between processes), W processes, M = fewest rows of any
process, N = W * M rows together, D width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def gather_rows(*rows_BD: Tensor) -> tuple[Tensor, ...]:
    """The first M rows of every process, in order of rank.

    The gradient of a row is the sum of what all processes' losses send it. Where every process
    computes the same loss, that is W times the gradient of one loss over the whole batch; the mean
    that DistributedDataParallel takes makes it exact again. Rows behind the M-th get a gradient of
    zero.

    Args:
        rows_BD: tensors of equally many rows.

    Returns:
        One tensor [N, D] for each; with one process the tensors themselves.
    """
    if comm.get_world_size() == 1:
        return rows_BD
    fewest = _fewest_rows(len(rows_BD[0]))
    return tuple(cast(Tensor, _Gather.apply(rows[:fewest])) for rows in rows_BD)


def _fewest_rows(rows: int) -> int:
    """The smallest number of rows of any process.

    Exchanged between the hosts (gloo), as both ends know their numbers there: asking the device
    would make the host wait for it in the middle of the forward pass.
    """
    count = torch.tensor(rows)
    dist.all_reduce(count, op=dist.ReduceOp.MIN, group=comm._get_global_gloo_group())
    return int(count)


class _Gather(torch.autograd.Function):
    """all_gather whose backward pass sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor) -> Tensor:
        ctx.count = len(rows_MD)
        rows_MD = rows_MD.contiguous()
        parts = [torch.empty_like(rows_MD) for _ in range(comm.get_world_size())]
        dist.all_gather(parts, rows_MD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient_ND = gradients[0].contiguous().clone()
        dist.all_reduce(gradient_ND)
        first = comm.get_rank() * ctx.count
        return gradient_ND[first : first + ctx.count]
