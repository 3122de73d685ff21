"""The image encoder: a ResNet with torchvision's names (specification 3.1).

Shapes: N images, C channels, H x W the map; C2 to C5 have strides 4, 8, 16, 32.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ext_common.errors import ConfigError
from soco_ext.modeling.grouped_norm import GroupedBatchNorm2d

DEPTHS: dict[int, tuple[type[Any], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Depth -> block and blocks per stage. The stride is in the 3x3 convolution of a bottleneck."""


class ResNet(nn.Module):
    """A ResNet without classifier.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``.
        layers: blocks of each of the four stages.
        base_width: channels of the stem and of the first stage's inner convolutions.
        zero_residuals: every residual branch starts at zero, as released.
    """

    def __init__(
        self,
        block: type[Any],
        layers: tuple[int, ...],
        base_width: int = 64,
        zero_residuals: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = GroupedBatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        planes = [base_width * 2**stage for stage in range(4)]
        channels = [width * block.expansion for width in planes]
        before = [base_width, *channels]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, before[i], planes[i], layers[i], stride=1 if i == 0 else 2)
            for i in range(4)
        )
        self.channels = tuple(channels)
        self.maps = len(channels)
        _initialise(self, zero_residuals)

    @classmethod
    def of_depth(cls, depth: int, base_width: int = 64, zero_residuals: bool = True) -> ResNet:
        """ResNet-18, 34, 50, 101 or 152.

        Raises:
            ConfigError: another depth.
        """
        if depth not in DEPTHS:
            raise ConfigError(
                f"no ResNet-{depth}",
                where="MODEL.RESNETS.DEPTH",
                fix=f"one of {', '.join(map(str, DEPTHS))}",
            )
        return cls(*DEPTHS[depth], base_width=base_width, zero_residuals=zero_residuals)

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """The maps C2 to C5, or as many as are in use."""
        maps = [self.layer1(self._stem(images_N3HW))]
        for stage in self._stages()[1 : self.maps]:
            maps.append(stage(maps[-1]))
        return maps

    def c4(self, images_N3HW: Tensor) -> Tensor:
        """The map of stride 16, before the last stage."""
        c4_NCHW: Tensor = self.layer3(self.layer2(self.layer1(self._stem(images_N3HW))))
        return c4_NCHW

    def use_maps(self, count: int) -> None:
        """Stop after so many maps; the stages behind get no gradient, so they are frozen."""
        self.maps = count
        for stage in self._stages()[count:]:
            stage.requires_grad_(False)

    def _stem(self, images_N3HW: Tensor) -> Tensor:
        stem_NCHW: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images_N3HW))))
        return stem_NCHW

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4


def _stage(block: type[Any], inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), GroupedBatchNorm2d(outputs)
        )
    norm = {"norm_layer": GroupedBatchNorm2d}
    first = block(inputs, planes, stride, shortcut, **norm)
    return nn.Sequential(first, *(block(outputs, planes, **norm) for _ in range(blocks - 1)))


def _initialise(model: ResNet, zero_residuals: bool) -> None:
    """Convolutions normal with the variance 2 / fan-out; residual branches start at zero or one."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_residuals and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif zero_residuals and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
