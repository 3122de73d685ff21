"""Class and box heads: one per decoder layer, and one for the encoder of two-stage models.

Source: Deformable DETR (Zhu et al. 2021), appendix A.4.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

_PRIOR = 0.01  # score of every class before training
_SMALL_BOX = -2.0  # logit of the first boxes' sides where nothing else tells them


class Mlp(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, the hidden layers and the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., widths[0]]`` to ``[..., widths[-1]]``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output


def class_heads(width: int, num_classes: int, count: int, *, shared: bool) -> nn.ModuleList:
    """``count`` linear heads that start with a low score; ``shared``: the same one, repeated."""
    heads = [nn.Linear(width, num_classes) for _ in range(1 if shared else count)]
    for head in heads:
        nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return nn.ModuleList(heads * count if shared else heads)


def box_heads(width: int, count: int, *, shared: bool, two_stage: bool) -> nn.ModuleList:
    """``count`` heads that start by predicting their reference; ``shared`` as in class_heads."""
    heads = [Mlp(width, width, width, 4) for _ in range(1 if shared else count)]
    for head in heads:
        last = head.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    if not two_stage:
        first = heads[0].layers[-1]
        assert isinstance(first, nn.Linear)
        nn.init.constant_(first.bias[2:], _SMALL_BOX)
    return nn.ModuleList(heads * count if shared else heads)
