"""The paper's FPN: strided convolutions above P5 and a norm on every level (spec 2.1).

Shape suffixes: N images, C channels, H and W rows and columns of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frozen_backbone_ext.modeling.part_options import PartOptions, init_conv


@dataclass(frozen=True)
class NeckShape:
    """Levels and width of a neck.

    Args:
        min_level: level of the trunk's finest map (stride 2^level).
        max_level: coarsest level; those above the trunk's are made by the neck.
        width: channels of every level.
        parts: norm and activation.
    """

    min_level: int = 2
    max_level: int = 6
    width: int = 256
    parts: PartOptions = field(default_factory=PartOptions)

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels, finest first."""
        return tuple(range(self.min_level, self.max_level + 1))


class PaperFpn(nn.Module):
    """Lateral 1x1 convolutions, sums from the top down, a 3x3 convolution and a norm per level.

    Args:
        in_channels: of the trunk's maps, finest first; their strides double.
        shape: levels above the trunk's are 3x3 convolutions of stride 2.
    """

    def __init__(self, in_channels: Sequence[int], shape: NeckShape | None = None) -> None:
        super().__init__()
        shape = shape or NeckShape()
        self.levels = shape.levels
        self.width = width = shape.width
        self._from_trunk = len(in_channels)
        self.lateral = nn.ModuleDict()
        self.smooth = nn.ModuleDict()
        self.norm = nn.ModuleDict()
        for number, level in enumerate(self.levels):
            name = str(level)
            above = number >= self._from_trunk
            if not above:
                self.lateral[name] = nn.Conv2d(in_channels[number], width, kernel_size=1)
            stride = 2 if above else 1
            self.smooth[name] = nn.Conv2d(width, width, 3, stride=stride, padding=1)
            self.norm[name] = shape.parts.make_norm(width)
        for module in (*self.lateral.values(), *self.smooth.values()):
            assert isinstance(module, nn.Conv2d)
            init_conv(module)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid maps [N, width, H, W], finest first.

        Args:
            features: of the trunk, finest first.
        """
        names = [str(level) for level in self.levels]
        sums = [self.lateral[n](m) for n, m in zip(names, features, strict=False)]
        for number in range(len(sums) - 2, -1, -1):
            up_NCHW = F.interpolate(sums[number + 1], scale_factor=2.0, mode="nearest")
            sums[number] = sums[number] + up_NCHW
        maps = [self.smooth[n](m) for n, m in zip(names, sums, strict=False)]
        for name in names[len(maps) :]:
            maps.append(self.smooth[name](maps[-1]))
        return [self.norm[n](m) for n, m in zip(names, maps, strict=True)]


class PlainConvNeck(nn.Module):
    """The ablation's neck: a few plain convolutions per level, nothing merged (spec 6).

    Args:
        in_channels: of the trunk's maps, finest first.
        shape: levels above the trunk's are max-pools of the level below.
        num_convs: 3x3 convolutions with norm and activation per level, 1 or more.
    """

    def __init__(
        self, in_channels: Sequence[int], shape: NeckShape | None = None, *, num_convs: int = 1
    ) -> None:
        super().__init__()
        shape = shape or NeckShape()
        self.levels, self.width = shape.levels, shape.width
        width, parts = shape.width, shape.parts
        self.stacks = nn.ModuleList()
        for channels in in_channels:
            stack = nn.Sequential()
            for number in range(num_convs):
                conv = nn.Conv2d(width if number else channels, width, 3, padding=1, bias=False)
                init_conv(conv)
                stack.extend([conv, parts.make_norm(width), parts.make_activation()])
            self.stacks.append(stack)

    def forward(self, features: Sequence[Tensor]) -> list[torch.Tensor]:
        """Maps [N, width, H, W], finest first."""
        maps = [stack(m) for stack, m in zip(self.stacks, features, strict=True)]
        while len(maps) < len(self.levels):
            maps.append(F.max_pool2d(maps[-1], kernel_size=2, stride=2))
        return maps
