"""Networks of a configuration that both models have."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ext_common.errors import ConfigError
from soco_ext.modeling.contrast import MomentumOptions
from soco_ext.modeling.heads import EmbeddingMLP
from soco_ext.modeling.resnet import ResNet
from soco_ext.modeling.shared_norm import synchronised

NORMS = ("BN", "SyncBN")


def encoder_of(cfg: CfgNode) -> ResNet:
    """The ResNet of ``MODEL.RESNETS.DEPTH``."""
    return ResNet.of_depth(cfg.MODEL.RESNETS.DEPTH, cfg.SOCO.BASE_WIDTH, cfg.SOCO.ZERO_RESIDUALS)


def embedding_networks(cfg: CfgNode, input_dim: int) -> dict[str, nn.Module]:
    """Projector and predictor over region vectors of width ``input_dim``."""
    hidden, output = cfg.SOCO.HIDDEN_DIM, cfg.SOCO.EMBEDDING_DIM
    return {
        "projector": EmbeddingMLP(input_dim, hidden, output),
        "predictor": EmbeddingMLP(output, hidden, output),
    }


def momentum_of(cfg: CfgNode) -> MomentumOptions:
    """The target's schedule."""
    return MomentumOptions(cfg.SOCO.MOMENTUM, cfg.SOCO.MOMENTUM_STEPS or cfg.SOLVER.MAX_ITER)


def prepared(module: nn.Module, cfg: CfgNode) -> nn.Module:
    """The module with the norms and the memory layout of the configuration.

    Raises:
        ConfigError: an unknown norm.
    """
    module = with_norm(module, cfg)
    if cfg.SOCO.CHANNELS_LAST:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def with_norm(module: nn.Module, cfg: CfgNode) -> nn.Module:
    """The module with ``SOCO.NORM``; one process needs no synchronisation.

    Raises:
        ConfigError: an unknown norm.
    """
    norm = cfg.SOCO.NORM
    if norm not in NORMS:
        raise ConfigError(f"{norm!r} is not known", where="SOCO.NORM", fix=" or ".join(NORMS))
    if norm == "BN" or comm.get_world_size() == 1:
        return module
    return synchronised(module, cfg.MODEL.DEVICE)
