"""Batch norm with the statistics of all processes (specification 3.5).

torch's ``SyncBatchNorm`` exists for GPUs only. On other devices :class:`SharedBatchNorm` does the
same with the all-reduce of any process group (gloo), so that a run on several CPU processes
computes what one process with the whole batch does.

Shapes: R rows of this process, C channels, ``x`` [R, C] or [R, C, H, W].
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soco_ext.modeling.grouped_norm import GroupedBatchNorm2d, GroupedSyncBatchNorm, NormOfGroups


class SharedBatchNorm(_BatchNorm):
    """As ``nn.SyncBatchNorm``, on any device; mean and deviation are exchanged one after the other.

    All processes have to take part in every forward and backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The normalised batch, in the dtype of ``x``."""
        if not self.training or comm.get_world_size() == 1:
            normed: Tensor = super().forward(x)
            return normed
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        dims = [0, *range(2, x.ndim)]
        own_count = wide.new_full((1,), x.numel() / x.shape[1])
        sums = differentiable_all_reduce(torch.cat([wide.sum(dims), own_count]))
        count, mean_C = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        shape = [1, -1, *(1 for _ in dims[1:])]
        centred = wide - mean_C.view(shape)
        var_C = differentiable_all_reduce(centred.square().sum(dims)) / count
        self._follow(mean_C.detach(), var_C.detach() * count / (count - 1.0))
        normed = centred * torch.rsqrt(var_C + self.eps).view(shape)
        return (normed * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _follow(self, mean_C: Tensor, var_C: Tensor) -> None:
        own: Any = self  # torch types the buffers as optional
        own.num_batches_tracked.add_(1)
        own.running_mean.lerp_(mean_C.to(own.running_mean.dtype), own.momentum)
        own.running_var.lerp_(var_C.to(own.running_var.dtype), own.momentum)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions, as torch's."""


class GroupedSharedBatchNorm(NormOfGroups, SharedBatchNorm):
    """The same, which can be told to take several groups."""


def is_synchronised(module: nn.Module) -> bool:
    """Whether a module is a batch norm that exchanges its statistics."""
    return isinstance(module, nn.SyncBatchNorm | SharedBatchNorm)


def synchronised(module: nn.Module, device: str) -> nn.Module:
    """The module with every batch norm replaced by one that exchanges its statistics.

    Args:
        module: changed in place, except where it is a batch norm itself.
        device: of the training; torch's own norm is used on CUDA.
    """
    if isinstance(module, _BatchNorm):
        return _replacement(module, device)
    for name, child in module.named_children():
        module.add_module(name, synchronised(child, device))
    return module


def _replacement(norm: _BatchNorm, device: str) -> nn.Module:
    grouped = isinstance(norm, GroupedBatchNorm2d)
    kinds: tuple[type[_BatchNorm], type[_BatchNorm]]
    if device.startswith("cuda"):
        kinds = (nn.SyncBatchNorm, GroupedSyncBatchNorm)
    else:
        kinds = (SharedBatchNorm, GroupedSharedBatchNorm)
    made = kinds[grouped](norm.num_features, eps=norm.eps, momentum=norm.momentum)
    made.load_state_dict(norm.state_dict())
    for parameter, old in zip(made.parameters(), norm.parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    return made.to(norm.weight).train(norm.training)
