"""The feature pyramid (specification 3.1): batch norms, and maps of any size.

detectron2's FPN doubles the coarser map, which fails where an odd size was halved (views of 112
pixels: 4 to 7); this one resizes it to the finer map. The released scripts have P2 to P5.

Shapes: N images, C channels, H x W the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ext_common.errors import ConfigError
from soco_ext.modeling.grouped_norm import GroupedBatchNorm2d

EXTRA_LEVELS = ("max_pool", "conv_on_input", "conv_on_output")


@dataclass(frozen=True)
class PyramidLevels:
    """Which levels the pyramid has (``start_level`` to ``relu_before_extra_convs``, specification 7).

    Args:
        start: first map of the encoder that is used, from 0 (C2).
        end: map after the last that is used; -1 = all.
        outs: levels. Those that no map is left for are coarser ones.
        extra: how a coarser level is made of the one before: ``max_pool`` (every second pixel),
            or a convolution of stride 2 with batch norm, the first of them on the coarsest map of
            the encoder (``conv_on_input``) or of the pyramid (``conv_on_output``).
        relu_before_extra: before every such convolution but the first.

    Raises:
        ConfigError: no maps, fewer levels than maps, or another way of making levels.
    """

    start: int = 0
    end: int = -1
    outs: int = 4
    extra: str = EXTRA_LEVELS[0]
    relu_before_extra: bool = False

    def __post_init__(self) -> None:
        if self.extra not in EXTRA_LEVELS:
            raise ConfigError(
                f"{self.extra!r} is not known",
                where="SOCO.PYRAMID.EXTRA_LEVELS",
                fix=f"one of {', '.join(EXTRA_LEVELS)}",
            )
        if not (0 <= self.start < 4 and (self.end == -1 or self.start < self.end <= 4)):
            raise ConfigError(
                f"maps {self.start} to {self.end} of the encoder's 4",
                where="SOCO.PYRAMID.START_LEVEL, END_LEVEL",
                fix="the first from 0 to 3, the end behind it and up to 4; -1 = all",
            )
        if self.outs < self.stop(4) - self.start:
            raise ConfigError(
                f"{self.outs} levels of {self.stop(4) - self.start} maps",
                where="SOCO.PYRAMID.NUM_OUTS",
                fix="at least one for each map; END_LEVEL leaves maps out",
            )

    def stop(self, maps: int) -> int:
        """The map after the last that is used, of so many."""
        return maps if self.end == -1 else self.end


class ConvNorm(nn.Module):
    """Convolution without bias, then a batch norm; no activation.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel.
        stride: 1 keeps the size of the map.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = GroupedBatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The normalised map, of the same size."""
        return self.bn(self.conv(x_NCHW))


class FeaturePyramid(nn.Module):
    """Maps of one width: one for each used map of the encoder, and coarser ones.

    Args:
        inputs: channels of the encoder's maps, finest first.
        outputs: channels of every output.
        levels: which.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: int = 256,
        levels: PyramidLevels = PyramidLevels(),
    ) -> None:
        super().__init__()
        self.levels = levels
        self._used = slice(levels.start, levels.stop(len(inputs)))
        used = inputs[self._used]
        self.lateral_convs = nn.ModuleList(ConvNorm(width, outputs, 1) for width in used)
        self.fpn_convs = nn.ModuleList(ConvNorm(outputs, outputs, 3) for _ in used)
        if levels.extra != "max_pool":
            widths = [outputs] * (levels.outs - len(used))
            if widths and levels.extra == "conv_on_input":
                widths[0] = used[-1]
            self.fpn_convs.extend(ConvNorm(width, outputs, 3, stride=2) for width in widths)
        self.out_channels = outputs
        # of the smallest map that is normed: C2 has 4, and a convolution of a coarser level doubles it
        extra = len(self.fpn_convs) - len(self.lateral_convs)
        self.coarsest_stride = 2 ** (levels.stop(len(inputs)) + 1 + extra)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid, finest map first."""
        used = maps[self._used]
        merged = [conv(x_NCHW) for conv, x_NCHW in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            finer = merged[level - 1]
            merged[level - 1] = finer + F.interpolate(
                merged[level], size=finer.shape[-2:], mode="nearest"
            )
        own = list(self.fpn_convs)[: len(used)]
        outs = [conv(x_NCHW) for conv, x_NCHW in zip(own, merged, strict=True)]
        for number in range(len(used), self.levels.outs):
            outs.append(self._coarser(number, used[-1], outs))
        return outs

    def _coarser(self, number: int, input_NCHW: Tensor, outs: Sequence[Tensor]) -> Tensor:
        if self.levels.extra == "max_pool":
            return F.max_pool2d(outs[-1], 1, stride=2)
        first = number == len(self.lateral_convs)
        source = input_NCHW if first and self.levels.extra == "conv_on_input" else outs[-1]
        if self.levels.relu_before_extra and not first:
            source = F.relu(source)
        coarser: Tensor = self.fpn_convs[number](source)
        return coarser
