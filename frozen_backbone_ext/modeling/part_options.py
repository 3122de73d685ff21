"""What the trained parts of a detector have in common: norm and activation (spec 1).

Shape suffixes: N images or regions, C channels, H and W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import nn
from torch.nn import functional as F

from ext_common.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
NORMS = ("", "BN", "SyncBN", "naiveSyncBN", "FrozenBN", "GN")


@dataclass(frozen=True)
class PartOptions:
    """Norm and activation of necks and heads.

    Args:
        norm: one of :data:`NORMS`; empty = none.
        eps: added to the variance (1e-4 in the release).
        momentum: share of the new batch in the running statistics (0.003 in the release, which
            writes it as 0.997 of the old).
        activation: ``relu`` or ``silu``.

    Raises:
        ConfigError: an unknown norm or activation.
    """

    norm: str = "BN"
    eps: float = 1e-4
    momentum: float = 0.003
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation {self.activation!r}",
                where="MODEL.DETECTOR_PARTS.ACTIVATION",
                fix=f"one of {', '.join(ACTIVATIONS)}",
            )
        if self.norm not in NORMS:
            raise ConfigError(
                f"unknown norm {self.norm!r}",
                where="MODEL.DETECTOR_PARTS.NORM",
                fix=f"one of {', '.join(NORMS)}",
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PartOptions:
        """Translate ``MODEL.DETECTOR_PARTS``.

        torch's synchronised norm exists on GPUs only; on a CPU detectron2's own takes its place.
        """
        node = cfg.MODEL.DETECTOR_PARTS
        on_cpu = node.NORM == "SyncBN" and cfg.MODEL.DEVICE == "cpu"
        return cls(
            norm="naiveSyncBN" if on_cpu else node.NORM,
            eps=node.NORM_EPS,
            momentum=node.NORM_MOMENTUM,
            activation=node.ACTIVATION,
        )

    def make_norm(self, channels: int) -> nn.Module:
        """A norm layer, or Identity where there is none."""
        layer: nn.Module | None = get_norm(self.norm, channels)
        if layer is None:
            return nn.Identity()
        for name, value in (("eps", self.eps), ("momentum", self.momentum)):
            if hasattr(layer, name):
                setattr(layer, name, value)
        return layer

    def make_activation(self) -> nn.Module:
        """The activation; not in place, since pyramid maps are read more than once."""
        return ACTIVATIONS[self.activation]()


class ConvNorm(nn.Module):
    """A convolution of stride 1 that keeps the size, then a norm; parts ``conv`` and ``bn``.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: odd.
        options: which norm.
        bias: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        options: PartOptions,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
        self.bn = options.make_norm(out_channels)
        init_conv(self.conv)

    def forward(self, maps_NCHW: torch.Tensor) -> torch.Tensor:
        """Filtered maps of the same height and width."""
        out_NCHW: torch.Tensor = self.bn(self.conv(maps_NCHW))
        return out_NCHW


def init_conv(conv: nn.Conv2d) -> None:
    """He-normal over the outputs, bias 0 (spec 2.2)."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def coarser(maps_NCHW: torch.Tensor) -> torch.Tensor:
    """The next pyramid level without parameters: 2x2 max-pool of stride 2."""
    return F.max_pool2d(maps_NCHW, kernel_size=2, stride=2)
