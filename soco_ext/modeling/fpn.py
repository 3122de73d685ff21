"""The feature pyramid (specification 3.1): batch norms, and maps of any size.

detectron2's FPN doubles the coarser map, which fails where an odd size was halved (views of 112
pixels: 4 to 7); this one resizes it to the finer map.

Shapes: N images, C channels, H x W the map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from soco_ext.modeling.grouped_norm import GroupedBatchNorm2d


class ConvNorm(nn.Module):
    """Convolution without bias, then a batch norm; no activation.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel; the map keeps its size.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = GroupedBatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The normalised map, of the same size."""
        return self.bn(self.conv(x_NCHW))


class FeaturePyramid(nn.Module):
    """One output map per input map, all with the same channels.

    Args:
        inputs: channels of the maps, finest first.
        outputs: channels of every output.
    """

    def __init__(self, inputs: Sequence[int], outputs: int = 256) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvNorm(width, outputs, 1) for width in inputs)
        self.fpn_convs = nn.ModuleList(ConvNorm(outputs, outputs, 3) for _ in inputs)
        self.out_channels = outputs

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid, finest map first."""
        merged = [conv(x_NCHW) for conv, x_NCHW in zip(self.lateral_convs, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(
                merged[level], size=finer.shape[-2:], mode="nearest"
            )
        return [conv(x_NCHW) for conv, x_NCHW in zip(self.fpn_convs, merged, strict=True)]
