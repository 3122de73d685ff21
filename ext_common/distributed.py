"""Values that all processes agree on."""

from __future__ import annotations

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over all processes, without gradient; itself with one process."""
    size = comm.get_world_size()
    value = value.detach()
    if size == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / size
