"""Bytes that autograd keeps between a forward pass and its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_for_backward(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of the storages that ``forward`` leaves saved, each counted once.

    Args:
        model: its parameters and buffers, which exist anyway, are not counted.
        forward: runs the model; what it returns is kept until the count is done.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # kept: a storage that is freed would give its address to another
    total = sum(storages.values())
    del result
    return total
