"""Which batch norm a backbone has: frozen, ordinary or synchronised."""

from __future__ import annotations

from detectron2.layers import FrozenBatchNorm2d
from timm.layers import BatchNormAct2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ext_common.errors import ConfigError

NORM_CHOICES = ("FrozenBN", "BN", "SyncBN")


def convert_norms(module: nn.Module, norm: str, *, where: str = "MODEL.TIMM.NORM") -> nn.Module:
    """Turn a module's batch norms into the wanted kind, keeping their weights and statistics.

    Args:
        module: changed in place, except where it is a batch norm itself.
        norm: ``FrozenBN`` (statistics and affine part become constants), ``BN`` (left as they
            are) or ``SyncBN`` (statistics over all processes).
        where: the config key that error messages name.

    Returns:
        The module, or what replaces it.

    Raises:
        ConfigError: an unknown kind, or a batch norm that cannot be frozen.
    """
    if norm == "BN":
        return module
    if norm == "SyncBN":
        converted: nn.Module = convert_sync_batchnorm(module)
        return converted
    if norm != "FrozenBN":
        raise ConfigError(
            f"unknown norm {norm!r}", where=where, fix=f"one of {', '.join(NORM_CHOICES)}"
        )
    module = _freeze(module)
    for name, child in module.named_modules():
        if isinstance(child, _BatchNorm):
            raise ConfigError(
                f"{name} is a {type(child).__name__}, which FrozenBN does not know",
                where=where,
                fix="use BN or SyncBN with this model",
            )
    return module


def _freeze(module: nn.Module) -> nn.Module:
    # detectron2 would take timm's fused norm + activation for a plain norm and lose the activation
    if isinstance(module, BatchNormAct2d | SyncBatchNormAct):
        fused: nn.Module = freeze_batch_norm_2d(module)
        return fused
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        plain: nn.Module = FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        return plain
    for name, child in module.named_children():
        frozen = _freeze(child)
        if frozen is not child:
            module.add_module(name, frozen)
    return module
