"""Deformable 3x3 convolution with its own offsets."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import DeformConv2d


class DeformableConv(nn.Module):
    """Convolution whose taps move by predicted offsets (Dai et al. 2017), with modulation.

    Args:
        channels: input and output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # 9 taps: 18 offsets and 9 masks
        self.offset = nn.Conv2d(channels, 27, 3, padding=1)
        self.conv = DeformConv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        if self.offset.bias is not None:
            nn.init.zeros_(self.offset.bias)

    def forward(self, feats_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H, W]."""
        predicted = self.offset(feats_NCHW)
        convolved: Tensor = self.conv(feats_NCHW, predicted[:, :18], predicted[:, 18:].sigmoid())
        return convolved
