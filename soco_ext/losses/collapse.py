"""Whether embeddings collapse: spread, alignment and uniformity.

Alignment and uniformity are those of Wang and Isola, "Understanding Contrastive Representation
Learning through Alignment and Uniformity on the Hypersphere" (ICML 2020), sections 4.1.1 and 4.1.2.

Shapes: R vectors of length 1 and width C.
"""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_spread(vectors_RC: Tensor) -> Tensor:
    """Mean deviation of a coordinate, times sqrt(C): about 1 on the whole sphere, 0 collapsed."""
    return vectors_RC.std(dim=0, unbiased=False).mean() * vectors_RC.shape[1] ** 0.5


def alignment(similarity_P: Tensor) -> Tensor:
    """Mean squared distance of corresponding vectors, 0 (equal) to 4 (opposite).

    Args:
        similarity_P: their inner products; NaN if there is none.
    """
    return (2.0 - 2.0 * similarity_P).mean()


def uniformity(vectors_RC: Tensor, temperature: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs: 0 collapsed, lower is better spread."""
    if len(vectors_RC) < 2:
        return vectors_RC.new_zeros(())
    squared = torch.pdist(vectors_RC.float()).pow(2)
    return squared.mul(-temperature).exp().mean().log()
