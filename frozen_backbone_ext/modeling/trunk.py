"""Finding the trunk of a detector: the classification network below neck and heads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from ext_common.errors import ConfigError

_ADAPTER_PART = "adapter"


def trunk_of(backbone: nn.Module) -> nn.Module:
    """The network inside a backbone: what FPN, BiFPN and NAS-FPN call ``bottom_up``."""
    while isinstance(getattr(backbone, "bottom_up", None), nn.Module):
        backbone = backbone.get_submodule("bottom_up")
    return backbone


def find_trunk(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of a detector's trunk; the name is empty for a model without ``backbone``.

    Raises:
        ConfigError: nothing in the model is called ``backbone``.
    """
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] == "backbone"]
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no part called backbone",
            where="MODEL.BACKBONE_FREEZE.POLICY",
            fix="leave it empty for this model",
        )
    trunk = trunk_of(model.get_submodule(min(names, key=lambda name: name.count("."))))
    return next(name for name, module in model.named_modules() if module is trunk), trunk


def trunk_tensors(trunk: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics of the trunk itself, by their names in it.

    What adapters add is left out, and so are counters of batches, which no result depends on.
    """
    return {
        name: tensor
        for name, tensor in trunk.state_dict().items()
        if _ADAPTER_PART not in name
        and not name.endswith("num_batches_tracked")
        and name != HASH_BUFFER
    }


def trunk_hash(trunk: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of :func:`trunk_tensors`, as hex digits."""
    return tensors_hash(trunk_tensors(trunk))


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, as hex digits; their order does not count."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


HASH_BUFFER = "frozen_hash"
"""Buffer of a trunk that is left out of checkpoints: its hash, uint8 [32]; zeros = not known."""
