"""Linear evaluation: a classifier on the frozen encoder's mean features (specification 4).

Shapes: N images, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import DatasetError
from soco_ext.modeling.build import encoder_of
from soco_ext.modeling.resnet import ResNet


@META_ARCH_REGISTRY.register()
class LinearClassifier(nn.Module):
    """A linear layer over the encoder's last map; only the layer is trained.

    ``MODEL.WEIGHTS`` is a checkpoint of a pretraining, ours or a released one; what it has besides
    the encoder is not needed.

    Args:
        encoder: frozen.
        num_classes: C.
        adapt_statistics: the encoder's batch norms use and update statistics of the batch, as in
            the released script; otherwise they are those of pretraining.
    """

    optional_weights = (
        "fc.*",
        "neck.*",
        "head.*",
        "projector.*",
        "predictor.*",
        "queue*",
        "*_k.*",
    )

    @configurable
    def __init__(self, *, encoder: ResNet, num_classes: int, adapt_statistics: bool = True) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.fc = nn.Linear(encoder.channels[-1], num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.adapt_statistics = adapt_statistics

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keys of ``SOCO.LINEAR``."""
        linear = cfg.SOCO.LINEAR
        return {
            "encoder": encoder_of(cfg),
            "num_classes": linear.NUM_CLASSES,
            "adapt_statistics": linear.ADAPT_STATISTICS,
        }

    def train(self, mode: bool = True) -> LinearClassifier:
        """As any module; the encoder follows only where its statistics adapt."""
        super().train(mode)
        self.encoder.train(mode and self.adapt_statistics)
        return self

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | Tensor:
        """The loss of a training batch, or the class scores [N, C].

        Args:
            batch: dicts with ``image`` (float [3, H, W], normalised RGB) and ``label``.

        Raises:
            DatasetError: a label that the layer does not have.
        """
        device = self.fc.weight.device
        images_N3HW = torch.stack([sample["image"] for sample in batch])
        with torch.no_grad():
            map_NDHW = self.encoder(images_N3HW.to(device, non_blocking=True))[-1]
        scores_NC: Tensor = self.fc(map_NDHW.mean(dim=(2, 3)))
        if not self.training:
            return scores_NC
        labels = [int(sample["label"]) for sample in batch]
        if max(labels) >= self.fc.out_features:
            raise DatasetError(
                f"class {max(labels)} of {self.fc.out_features}",
                where="SOCO.LINEAR.NUM_CLASSES",
                fix="set it to the number of classes",
            )
        labels_N = torch.tensor(labels).to(device, non_blocking=True)
        return {"loss_class": F.cross_entropy(scores_NC, labels_N)}
