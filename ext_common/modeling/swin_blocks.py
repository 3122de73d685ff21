"""Window attention and its blocks, with the state-dict keys of published Swin detectors.

The parts without a say in the geometry (attention, patch merging, MLP, stochastic depth) are timm's.
Its block is not used: it shifts the map before it pads it to whole windows, published detectors pad
first, so results differ wherever a map is not a multiple of the window.

Shape suffixes: N images, H and W rows and columns of tokens, C channels, V windows of one image,
P tokens of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models.swin_transformer import (
    PatchMerging,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_INDEX = "relative_position_index"
_MASKED = -100.0  # added to the logits of tokens that are no neighbours (detic spec 1.1)


class SavedWindowAttention(WindowAttention):
    """timm's window attention whose ``relative_position_index`` is in the state dict.

    Args:
        arguments: those of :class:`timm.models.swin_transformer.WindowAttention`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer(_INDEX, self.get_buffer(_INDEX))  # registered again to be saved


class SwinBlock(nn.Module):
    """Attention within windows, then an MLP, both residual (Liu et al. 2021, equation 3).

    Args:
        channels: C.
        num_heads: attention heads; divides the channels.
        window: tokens along the side of a window.
        shift: tokens by which the windows are moved; 0 = not.
        mlp_ratio: width of the MLP / channels.
        drop_path: share of the residual branches dropped in training, 0 to 1.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window: int,
        shift: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = SavedWindowAttention(channels, num_heads, window_size=window)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x_NHWC: Tensor, mask_VPP: Tensor) -> Tensor:
        """The block's output, of the input's shape.

        Args:
            x_NHWC: tokens of any height and width.
            mask_VPP: from :func:`shifted_window_mask` for this size; read by shifted blocks.
        """
        attended_NHWC = self._attend(self.norm1(x_NHWC), mask_VPP if self.shift else None)
        x_NHWC = x_NHWC + self.drop_path(attended_NHWC)
        mixed_NHWC: Tensor = x_NHWC + self.drop_path(self.mlp(self.norm2(x_NHWC)))
        return mixed_NHWC

    def _attend(self, x_NHWC: Tensor, mask_VPP: Tensor | None) -> Tensor:
        _, height, width, channels = x_NHWC.shape
        side = (self.window, self.window)
        padded = F.pad(x_NHWC, (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            padded = padded.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(padded, side).reshape(-1, self.window**2, channels)
        windows = self.attn(windows, mask=mask_VPP).reshape(-1, *side, channels)
        merged = window_reverse(windows, side, padded.shape[1], padded.shape[2])
        if self.shift:
            merged = merged.roll((self.shift, self.shift), dims=(1, 2))
        return merged[:, :height, :width].contiguous()


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted by half a window.

    Args:
        channels: C.
        num_heads: attention heads.
        window: tokens along the side of a window.
        drop_paths: one share per block.
        merge: halve the resolution afterwards, to 2C channels.
        use_checkpoint: recompute the blocks in the backward pass instead of keeping activations.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window: int,
        drop_paths: Sequence[float],
        merge: bool,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels,
                num_heads,
                window=window,
                shift=window // 2 if index % 2 else 0,
                drop_path=drop_path,
            )
            for index, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after the blocks, and what the next stage starts from."""
        mask_VPP = shifted_window_mask((x_NHWC.shape[1], x_NHWC.shape[2]), self.window, like=x_NHWC)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x_NHWC = checkpoint(block, x_NHWC, mask_VPP, use_reentrant=False)
            else:
                x_NHWC = block(x_NHWC, mask_VPP)
        return x_NHWC, x_NHWC if self.downsample is None else self.downsample(x_NHWC)


def shifted_window_mask(size: tuple[int, int], window: int, *, like: Tensor) -> Tensor:
    """What keeps tokens apart that share a window only because the map was rolled.

    Args:
        size: height and width of the map, before it is padded to whole windows.
        window: tokens along the side of a window; windows are shifted by its half.
        like: gives type and device.

    Returns:
        ``mask_VPP``: 0 between neighbours, -100 between others (Liu et al. 2021, figure 4).
    """
    height, width = (side + -side % window for side in size)
    rows_H = _part(torch.arange(height, device=like.device), height, window)
    columns_W = _part(torch.arange(width, device=like.device), width, window)
    part_HW = rows_H[:, None] * 3 + columns_W
    part_VP = window_partition(part_HW[None, :, :, None], (window, window)).flatten(1)
    apart_VPP = part_VP[:, None, :] != part_VP[:, :, None]
    return torch.zeros_like(apart_VPP, dtype=like.dtype).masked_fill(apart_VPP, _MASKED)


def _part(position: Tensor, length: int, window: int) -> Tensor:
    """Of a rolled axis: 0 in the windows that stayed whole, 1 and 2 in the halves of the last."""
    return (position >= length - window).long() + (position >= length - window // 2).long()
