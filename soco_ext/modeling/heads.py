"""Region head, projector and predictor (specification 3.1).

Shapes: G groups of R regions each (see :mod:`soco_ext.modeling.grouped_norm`), C channels, S x S
the pooled region, D width of a vector.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from soco_ext.modeling.grouped_norm import grouped_norm


class RegionHead(nn.Module):
    """Convolutions with batch norm, then one fully connected layer, as detectron2's box head.

    Args:
        channels: C of the pooled regions and of every convolution.
        size: S.
        num_convs: convolutions of 3x3.
        output_dim: D.
    """

    def __init__(
        self, channels: int = 256, size: int = 7, num_convs: int = 4, output_dim: int = 1024
    ) -> None:
        super().__init__()
        self.num_convs = num_convs
        for number in range(1, num_convs + 1):
            self.add_module(
                f"conv{number}", nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            )
            self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
        self.fc1 = nn.Linear(channels * size * size, output_dim)
        self.output_dim = output_dim

    def forward(self, regions: Tensor, groups: int = 1) -> Tensor:
        """Regions [G * R, C, S, S] to vectors [G * R, D]."""
        x = regions
        for number in range(1, self.num_convs + 1):
            x = getattr(self, f"conv{number}")(x)
            x = F.relu(grouped_norm(getattr(self, f"bn{number}"), x, groups))
        return F.relu(self.fc1(x.flatten(1)))


class EmbeddingMLP(nn.Module):
    """Projector and predictor: linear, batch norm, ReLU, linear.

    Args:
        input_dim, hidden_dim, output_dim: widths.
    """

    def __init__(self, input_dim: int, hidden_dim: int = 4096, output_dim: int = 256) -> None:
        super().__init__()
        self.linear1 = nn.Linear(input_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, output_dim)
        self.output_dim = output_dim

    def forward(self, x_RD: Tensor, groups: int = 1) -> Tensor:
        """Vectors [G * R, input_dim] to [G * R, output_dim]."""
        return self.linear2(F.relu(grouped_norm(self.bn1, self.linear1(x_RD), groups)))
