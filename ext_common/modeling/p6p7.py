"""Two coarser levels on top of an FPN.

Shape suffixes: N images, C channels, H and W rows and columns of the level.
"""

from __future__ import annotations

import torch
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn
from torch.nn import functional as F


class LastLevelP6P7_P5(nn.Module):  # noqa: N801 - the name in published configs and papers
    """P6 and P7 from the FPN's **output** P5 (detic spec 1.1; RetinaNet takes them from C5).

    P6 is a 3x3 convolution of stride 2 on P5 and is not activated; P7 is one on ReLU(P6).

    Args:
        in_channels: channels of P5.
        out_channels: channels of P6 and P7.
    """

    num_levels = 2
    in_feature = "p5"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            c2_xavier_fill(conv)

    def forward(self, p5_NCHW: torch.Tensor) -> list[torch.Tensor]:
        """P6 and P7 of P5."""
        p6_NCHW = self.p6(p5_NCHW)
        return [p6_NCHW, self.p7(F.relu(p6_NCHW))]
