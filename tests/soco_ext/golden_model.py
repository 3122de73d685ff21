"""Models and batches of the golden files ``model_*.npz``: every width is read from the arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck

from soco_ext.modeling.c4_model import SoCoC4
from soco_ext.modeling.contrast import ContrastiveModel, MomentumOptions
from soco_ext.modeling.fpn import FeaturePyramid
from soco_ext.modeling.heads import EmbeddingMLP, RegionHead
from soco_ext.modeling.pyramid_model import RegionOptions, SoCoFPN
from soco_ext.modeling.resnet import ResNet
from soco_ext.modeling.view_batch import BoxPair, BoxSet, ViewBatch

Arrays = Mapping[str, np.ndarray]


def _weight(arrays: Arrays, name: str) -> Any:
    return arrays[f"w/{name}.weight"]


def _count(arrays: Arrays, pattern: str) -> int:
    return len({m[1] for key in arrays if (m := re.match(pattern, key))})


def _mlp(arrays: Arrays, name: str) -> EmbeddingMLP:
    hidden, inputs = _weight(arrays, f"{name}.linear1").shape
    return EmbeddingMLP(inputs, hidden, len(_weight(arrays, f"{name}.linear2")))


def build_golden_model(arrays: Arrays, dtype: torch.dtype) -> ContrastiveModel:
    """The model of a file, with its weights and momentum, in training mode."""
    bottleneck = "w/encoder.layer1.0.conv3.weight" in arrays
    layers = tuple(_count(arrays, rf"w/encoder\.layer{i}\.(\d+)\.") for i in range(1, 5))
    width = len(_weight(arrays, "encoder.conv1"))
    encoder = ResNet(Bottleneck if bottleneck else BasicBlock, layers, width)
    momentum = MomentumOptions(float(arrays["out/base_momentum"]), int(arrays["out/ema_K"]))
    projector, predictor = _mlp(arrays, "projector"), _mlp(arrays, "predictor")
    model: ContrastiveModel
    if "w/head.fc1.weight" not in arrays:
        model = SoCoC4(encoder=encoder, projector=projector, predictor=predictor, momentum=momentum)
    else:
        laterals = _count(arrays, r"w/neck\.lateral_convs\.(\d+)\.")
        inputs = [_weight(arrays, f"neck.lateral_convs.{i}.conv").shape[1] for i in range(laterals)]
        neck = FeaturePyramid(inputs, len(_weight(arrays, "neck.fpn_convs.0.conv")))
        output_dim, flat = _weight(arrays, "head.fc1").shape
        size = round((flat / neck.out_channels) ** 0.5)
        convs = _count(arrays, r"w/head\.conv(\d+)\.")
        model = SoCoFPN(
            encoder=encoder,
            neck=neck,
            head=RegionHead(neck.out_channels, size, convs, output_dim),
            projector=projector,
            predictor=predictor,
            regions=RegionOptions("dense", size, aligned=True),
            momentum=momentum,
        )
    state = {key[2:]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("w/")}
    for name in ("queue", "queue_ptr"):  # of another method; our C4 model does not keep it
        state.pop(name, None)
    model.load_state_dict(state)
    model.ema_step = int(arrays["out/ema_k_before"])
    return model.to(dtype).train()


def golden_batch(arrays: Arrays, dtype: torch.dtype) -> ViewBatch:
    """Views, boxes and recorded matrices of a file."""

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[f"in/{name}"]).to(dtype)

    views = [tensor(f"im{i}") for i in range(1, _count(arrays, r"in/im(\d+)") + 1)]
    pairs = []
    for other in sorted(int(key[-1]) for key in arrays if key.startswith("in/corres1")):
        first = f"boxes1_1{other}" if f"in/boxes1_1{other}" in arrays else "boxes1"
        sets = BoxSet(0, tensor(first)), BoxSet(other - 1, tensor(f"boxes{other}"))
        pairs.append(BoxPair(*sets, matrix_NMM=tensor(f"corres1{other}")))
    return ViewBatch(views, pairs)
