"""Networks of a configuration that both models have."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ext_common.errors import ConfigError
from ext_common.modeling.norms import convert_norms
from soco_ext.modeling.contrast import MomentumOptions
from soco_ext.modeling.heads import EmbeddingMLP
from soco_ext.modeling.resnet import ResNet

NORMS = ("BN", "SyncBN")


def encoder_of(cfg: CfgNode) -> ResNet:
    """The ResNet of ``MODEL.RESNETS.DEPTH``."""
    return ResNet.of_depth(cfg.MODEL.RESNETS.DEPTH, cfg.SOCO.BASE_WIDTH)


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


def with_norm(module: nn.Module, cfg: CfgNode) -> nn.Module:
    """The module with ``SOCO.NORM``; one process needs no synchronisation.

    Raises:
        ConfigError: an unknown norm, or SyncBN between processes without GPU.
    """
    norm = cfg.SOCO.NORM
    if norm not in NORMS:
        raise ConfigError(f"{norm!r} is not known", where="SOCO.NORM", fix=" or ".join(NORMS))
    if norm == "BN" or comm.get_world_size() == 1:
        return module
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ConfigError(
            f"torch has no synchronised batch norm on {cfg.MODEL.DEVICE}",
            where="SOCO.NORM",
            fix="set it BN",
        )
    return convert_norms(module, norm, where="SOCO.NORM")
