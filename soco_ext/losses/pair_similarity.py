"""The loss between corresponding boxes of two views (specification 3.2).

Shapes: N images, M vectors per image and view, C their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-6


def pair_loss(q_NMC: Tensor, k_NMC: Tensor, matrix_NMM: Tensor) -> Tensor:
    """One directed term: -2 times the mean similarity of corresponding boxes.

    Args:
        q_NMC: online vectors of one view, of length 1.
        k_NMC: target vectors of the other view, of length 1.
        matrix_NMM: 1 where the row's box of the first view is the column's box of the second.

    Returns:
        Scalar in [-2, 2]. An image without corresponding boxes counts as 0 in the mean.
    """
    similarity_NMM = torch.bmm(q_NMC, k_NMC.transpose(1, 2))
    matrix_NMM = matrix_NMM.to(similarity_NMM.dtype)
    total_N = (similarity_NMM * matrix_NMM).sum(dim=(1, 2))
    return -2.0 * (total_N / (matrix_NMM.sum(dim=(1, 2)) + _EPSILON)).mean()
