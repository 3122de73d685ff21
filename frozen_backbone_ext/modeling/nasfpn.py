"""NAS-FPN: a searched feature pyramid that is repeated (spec 2.2).

Shape suffixes: N images, C channels, H and W rows and columns of a level; ``maps`` are lists over
levels, finest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.bottleneck_cell import BottleneckCell
from frozen_backbone_ext.modeling.nasfpn_graph import CELLS, LEVELS, NODE_LEVELS, Cell
from frozen_backbone_ext.modeling.part_options import ConvNorm, PartOptions, coarser

_CHOICES = {
    "pool": ("max", "avg"),
    "gate": ("coarse", "fine"),
    "merge": ("searched", "sum"),
    "cell": ("conv", "bottleneck"),
}


@dataclass(frozen=True)
class NasFpnOptions:
    """Form of a NAS-FPN; the defaults are the paper's release ("tf" in spec 2.2).

    Args:
        repeats: how often the graph is applied; 5 in the release, 7 in the NAS-FPN paper.
        width: channels of every level.
        pool: global pooling of the attention gate, ``max`` or ``avg``.
        gate: which map gates the other, ``coarse`` or ``fine``.
        extra_level_conv: 1x1 convolution and norm before P6 and P7 are pooled.
        lateral_bias: bias of the 1x1 convolutions that project the backbone's maps.
        project_equal: project maps that have ``width`` channels already, too.
        merge: ``searched``, or ``sum``: every attention merge is an addition.
        cell: ``conv``, or ``bottleneck``: residual blocks (the EfficientNet-B7 recipe).
        drop_connect: chance that a bottleneck cell's branch is left out in training.
        checkpoint: recompute each repeat in the backward pass instead of keeping its maps.
        parts: norm and activation.

    Raises:
        ConfigError: a number or word that is not allowed.
    """

    repeats: int = 5
    width: int = 256
    pool: str = "max"
    gate: str = "coarse"
    extra_level_conv: bool = False
    lateral_bias: bool = True
    project_equal: bool = False
    merge: str = "searched"
    cell: str = "conv"
    drop_connect: float = 0.0
    checkpoint: bool = False
    parts: PartOptions = field(default_factory=PartOptions)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{getattr(self, name)!r} is not known",
                    where=f"MODEL.NASFPN.{name.upper()}",
                    fix=f"one of {', '.join(choices)}",
                )
        if self.repeats < 1 or self.width < 1:
            raise ConfigError(
                f"repeats {self.repeats}, width {self.width}",
                where="MODEL.NASFPN",
                fix="both are 1 or more",
            )

    def as_mmdetection(self) -> NasFpnOptions:
        """The form of mmdetection's NASFPN, whose weights fit this one only ("mm" in spec 2.2)."""
        return replace(
            self,
            pool="avg",
            gate="fine",
            extra_level_conv=True,
            lateral_bias=False,
            project_equal=True,
        )


class NasFpn(nn.Module):
    """P3 to P7 of a backbone's C3, C4 and C5.

    Args:
        in_channels: of C3, C4 and C5.
        options: see there.
    """

    levels = LEVELS

    def __init__(self, in_channels: Sequence[int], options: NasFpnOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or NasFpnOptions()
        self.width = width = options.width
        parts = options.parts
        self.lateral = nn.ModuleDict()
        for level, channels in zip((3, 4, 5), in_channels, strict=True):
            if channels != width or options.project_equal:
                bias = options.lateral_bias
                self.lateral[str(level)] = ConvNorm(channels, width, 1, parts, bias=bias)
        self.extra = nn.ModuleDict()
        if options.extra_level_conv:
            for level in (6, 7):
                self.extra[str(level)] = ConvNorm(width, width, 1, parts, bias=False)
        inputs = [width] * len(LEVELS)
        self.cells = nn.ModuleList()
        for _ in range(options.repeats):
            self.cells.append(_make_cells(options, inputs))
            if options.cell == "bottleneck":
                inputs = [BottleneckCell.expansion * width] * len(LEVELS)
        self.output = nn.ModuleDict()
        if options.cell == "bottleneck":
            for level in LEVELS:
                self.output[str(level)] = ConvNorm(inputs[0], width, 1, parts)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid maps [N, width, H, W] of P3 to P7.

        Args:
            features: C3, C4 and C5; heights and widths halve exactly, and those of C5 are
                multiples of 4.

        Raises:
            ConfigError: other sizes.
        """
        _check_sizes(features)
        maps = [
            self.lateral[str(level)](map_NCHW) if str(level) in self.lateral else map_NCHW
            for level, map_NCHW in zip((3, 4, 5), features, strict=True)
        ]
        for level in (6, 7):
            top_NCHW = maps[-1]
            if str(level) in self.extra:
                top_NCHW = self.extra[str(level)](top_NCHW)
            maps.append(coarser(top_NCHW))
        for number in range(len(self.cells)):
            maps = self._run_repeat(number, maps)
        if self.output:
            maps = [
                self.output[str(level)](map_NCHW)
                for level, map_NCHW in zip(LEVELS, maps, strict=True)
            ]
        return maps

    def _run_repeat(self, number: int, maps: list[Tensor]) -> list[Tensor]:
        if not (self.options.checkpoint and self.training and torch.is_grad_enabled()):
            return self.repeat(number, maps)
        cells = self.cells[number]

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _statistics_kept(cells)

        again: list[Tensor] = checkpoint(
            self.repeat, number, maps, use_reentrant=False, context_fn=contexts
        )
        return again

    def repeat(self, number: int, maps: Sequence[Tensor]) -> list[Tensor]:
        """One pass through the graph: five maps in, five maps out."""
        return self.nodes(number, maps)[1]

    def nodes(self, number: int, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """All nodes of a repeat (inputs first), and its five output maps."""
        nodes = list(maps)
        outputs: dict[int, Tensor] = {}
        for cell, module in zip(CELLS, self._cells(number), strict=True):
            nodes.append(module(nodes))
            if cell.output:
                outputs[cell.level] = nodes[-1]
        return nodes, [outputs[level] for level in LEVELS]

    def _cells(self, number: int) -> Iterator[nn.Module]:
        cells: Any = self.cells[number]
        yield from cells


class MergingCell(ConvNorm):
    """Merge, activation, 3x3 convolution with bias, norm.

    Args:
        cell: its place in the graph.
        options: of the whole pyramid.
    """

    def __init__(self, cell: Cell, options: NasFpnOptions) -> None:
        super().__init__(options.width, options.width, 3, options.parts)
        self.merge = Merge(cell, options)
        self.activation = options.parts.make_activation()

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The new node [N, C, H, W] at the cell's level, from all nodes so far."""
        return super().forward(self.activation(self.merge(nodes)))


class Merge(nn.Module):
    """Brings two nodes to the cell's level and joins them.

    Args:
        cell: its place in the graph.
        options: of the whole pyramid.
    """

    def __init__(self, cell: Cell, options: NasFpnOptions) -> None:
        super().__init__()
        self.cell = cell
        self.attention = cell.attention and options.merge == "searched"
        self.pool = F.adaptive_max_pool2d if options.pool == "max" else F.adaptive_avg_pool2d
        self.gate_from_coarse = options.gate == "coarse"

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        """The merged map, before the activation."""
        cell = self.cell
        coarse_NCHW = resample(nodes[cell.coarse], NODE_LEVELS[cell.coarse], cell.level)
        fine_NCHW = resample(nodes[cell.fine], NODE_LEVELS[cell.fine], cell.level)
        if self.attention:
            pair = (coarse_NCHW, fine_NCHW)
            gate_NCHW, gated_NCHW = pair if self.gate_from_coarse else pair[::-1]
            merged_NCHW = gate_NCHW + gated_NCHW * self.pool(gate_NCHW, 1).sigmoid()
        else:
            merged_NCHW = coarse_NCHW + fine_NCHW
        return merged_NCHW if cell.extra is None else merged_NCHW + nodes[cell.extra]


def resample(map_NCHW: Tensor, level: int, target: int) -> Tensor:
    """A map of one level at the size of another: nearest pixel upwards, max-pool downwards."""
    if level == target:
        return map_NCHW
    if level > target:
        return F.interpolate(map_NCHW, scale_factor=float(2 ** (level - target)), mode="nearest")
    size = 2 ** (target - level)
    return F.max_pool2d(map_NCHW, kernel_size=size, stride=size)


def _make_cells(options: NasFpnOptions, inputs: Sequence[int]) -> nn.ModuleList:
    if options.cell == "conv":
        return nn.ModuleList(MergingCell(cell, options) for cell in CELLS)
    channels = [*inputs, *([BottleneckCell.expansion * options.width] * len(CELLS))]
    return nn.ModuleList(
        BottleneckCell(
            Merge(cell, options),
            {node: channels[node] for node in cell.inputs},
            options.width,
            options.parts,
            drop_connect=options.drop_connect,
        )
        for cell in CELLS
    )


def _check_sizes(features: Sequence[Tensor]) -> None:
    sizes = [tuple(map_NCHW.shape[-2:]) for map_NCHW in features]
    height, width = sizes[-1]
    if sizes != [(4 * height, 4 * width), (2 * height, 2 * width), (height, width)]:
        raise ConfigError(f"maps of sizes {sizes} do not halve exactly", fix=_SIZE_FIX)
    if height % 4 or width % 4:
        raise ConfigError(f"{height} x {width} at stride 32 has no exact P7", fix=_SIZE_FIX)


_SIZE_FIX = "pad pictures to multiples of 128 pixels (the pyramid's size_divisibility)"


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """A second forward pass of the same batch that leaves running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) or hasattr(m, "momentum")]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
