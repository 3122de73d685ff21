"""Building the model of a configuration, with what the packages add to any model."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_architecture
from torch import nn

from ext_common.registries import MODEL_SETUP_REGISTRY


def build_model(cfg: CfgNode) -> nn.Module:
    """The meta-architecture of ``cfg`` on its device, after every setup of MODEL_SETUP_REGISTRY.

    No weights are loaded yet.
    """
    model = build_architecture(cfg)
    for _, setup in MODEL_SETUP_REGISTRY:
        setup(cfg, model)
    return model
