"""The heavier NAS-FPN cell of the EfficientNet-B7 recipe: a residual bottleneck (spec 2.2).

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from frozen_backbone_ext.modeling.part_options import ConvNorm, PartOptions


class BottleneckCell(nn.Module):
    """Merge, activation, then a residual block from ``width`` to four times as many channels.

    Nodes of this form are wide; each is brought back to ``width`` by a 1x1 convolution and norm
    where it is read.

    Args:
        merge: joins the nodes, all with ``width`` channels.
        in_channels: of the nodes that the cell reads, by node.
        width: channels inside.
        parts: norm and activation.
        drop_connect: chance that the residual branch is left out, per picture, in training.
    """

    expansion = 4

    def __init__(
        self,
        merge: nn.Module,
        in_channels: Mapping[int, int],
        width: int,
        parts: PartOptions,
        *,
        drop_connect: float = 0.0,
    ) -> None:
        super().__init__()
        wide = self.expansion * width
        self.merge = merge
        self.projection = nn.ModuleDict(
            {
                str(node): ConvNorm(channels, width, 1, parts)
                for node, channels in in_channels.items()
                if channels != width
            }
        )
        self.reduce = ConvNorm(width, width, 1, parts, bias=False)
        self.middle = ConvNorm(width, width, 3, parts, bias=False)
        self.expand = ConvNorm(width, wide, 1, parts, bias=False)
        self.shortcut = ConvNorm(width, wide, 1, parts, bias=False)
        self.activation = parts.make_activation()
        self.drop_connect = drop_connect

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """The new node [N, 4 * width, H, W]."""
        narrow = list(nodes)
        for name, project in self.projection.items():
            narrow[int(name)] = project(nodes[int(name)])
        merged_NCHW = self.activation(self.merge(narrow))
        inner_NCHW = self.activation(self.reduce(merged_NCHW))
        inner_NCHW = self.activation(self.middle(inner_NCHW))
        branch_NCHW = self._dropped(self.expand(inner_NCHW))
        joined_NCHW: Tensor = self.activation(branch_NCHW + self.shortcut(merged_NCHW))
        return joined_NCHW

    def _dropped(self, branch_NCHW: Tensor) -> Tensor:
        if not (self.training and self.drop_connect):
            return branch_NCHW
        keep = 1.0 - self.drop_connect
        kept_N111 = torch.rand(len(branch_NCHW), 1, 1, 1, device=branch_NCHW.device) < keep
        return branch_NCHW * kept_N111 / keep
