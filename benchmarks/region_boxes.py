"""Boxes as an RPN proposes them: many around each of some places.

Shapes: R regions, O places.
"""

from __future__ import annotations

import torch
from torch import Tensor


def boxes_around_places(
    which_R: Tensor, image_size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """float32 [R, 4], XYXY pixels; they may reach over the border.

    Args:
        which_R: int64, the place of each box, from 0 on.
        image_size: (height, width).
        generator: of the CPU.
    """
    count = int(which_R.max()) + 1
    canvas_2 = torch.tensor([image_size[1], image_size[0]], dtype=torch.float32)
    centre_O2 = (0.2 + 0.6 * torch.rand(count, 2, generator=generator)) * canvas_2
    half_O2 = torch.rand(count, 2, generator=generator) * canvas_2 / 8 + 10
    shift_R2 = torch.randn(len(which_R), 2, generator=generator) * 6
    stretch_R2 = (0.15 * torch.randn(len(which_R), 2, generator=generator)).exp()
    middle_R2, size_R2 = centre_O2[which_R] + shift_R2, half_O2[which_R] * stretch_R2
    return torch.cat([middle_R2 - size_R2, middle_R2 + size_R2], dim=1)
