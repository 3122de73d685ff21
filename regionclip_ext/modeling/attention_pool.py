"""CLIP's attention pool with one query and folded projections.

Only the mean token asks, so neither keys nor values of the other tokens are needed: a head's key
projection moves to the query, and its value projection behind the weighted sum over tokens. The
work falls from two C x C products per token to four per region (design note 11: 16 times for RN50).

Legend: N regions, C channels, S side of a map, P = S * S places, L = P + 1 tokens, H heads, E = C / H,
D width of the joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNK = 256
"""Regions at once: bounds the memory for tokens and per-head queries."""


class AttentionPool(nn.Module):
    """A map becomes one embedding: attention of its mean to all its places (spec 2.2).

    Parameters have the names and meanings of CLIP's (``visual.attnpool.*``).

    Args:
        side: S; maps of another size are refused, positions are not interpolated.
        channels: C.
        heads: H, divides C.
        embed_dim: D.
        chunk: regions at once.
    """

    def __init__(
        self, side: int, channels: int, heads: int, embed_dim: int, *, chunk: int = CHUNK
    ) -> None:
        super().__init__()
        self.side, self.heads, self.chunk = side, heads, chunk
        self.positional_embedding = nn.Parameter(
            torch.randn(side * side + 1, channels) / channels**0.5
        )
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.c_proj.out_features

    def forward(self, maps_NCSS: Tensor) -> Tensor:
        """Embeddings [N, D], un-normalised, in the type of the maps (or of autocast).

        Raises:
            ValueError: maps of another size or with other channels.
        """
        expected = (self.c_proj.in_features, self.side, self.side)
        if tuple(maps_NCSS.shape[1:]) != expected:
            raise ValueError(
                f"the attention pool takes maps of {list(expected)}, got "
                f"{list(maps_NCSS.shape[1:])}: POOLER_RESOLUTION must be {2 * self.side}"
            )
        if len(maps_NCSS) <= self.chunk:
            return self._pool(maps_NCSS)
        return torch.cat([self._pool(part) for part in maps_NCSS.split(self.chunk)])

    def _pool(self, maps_NCSS: Tensor) -> Tensor:
        places_NCP = maps_NCSS.flatten(2)
        count, channels, places = places_NCP.shape
        width = channels // self.heads
        positions_LC = self.positional_embedding
        mean_NC = places_NCP.mean(dim=2) + positions_LC[0]
        query_NHE = self.q_proj(mean_NC).view(count, self.heads, width) * width**-0.5
        # positions are the same for all regions: projected once, so that maps need no copy
        key_LHE = self.k_proj(positions_LC).view(-1, self.heads, width)
        value_LHE = self.v_proj(positions_LC).view(-1, self.heads, width)

        key_HEC = self.k_proj.weight.view(self.heads, width, channels)
        asked_NHC = torch.einsum("nhe,hec->nhc", query_NHE, key_HEC)
        scores_NHP = asked_NHC @ places_NCP
        # the mean token's score is the mean of the places' scores
        scores_NHL = torch.cat([scores_NHP.mean(dim=2, keepdim=True), scores_NHP], dim=2)
        scores_NHL = scores_NHL + torch.einsum("nhe,lhe->nhl", query_NHE, key_LHE)
        exact = torch.promote_types(scores_NHL.dtype, torch.float32)
        attention_NHL = scores_NHL.softmax(dim=2, dtype=exact).to(scores_NHL.dtype)

        # and what it answers is the mean of the places
        share_NHP = attention_NHL[:, :, 1:] + attention_NHL[:, :, :1] / places
        seen_NHC = share_NHP @ places_NCP.transpose(1, 2).to(share_NHP.dtype)
        value_HEC = self.v_proj.weight.view(self.heads, width, channels)
        values_NHE = torch.einsum("nhc,hec->nhe", seen_NHC, value_HEC)
        values_NHE = values_NHE + torch.einsum("nhl,lhe->nhe", attention_NHL, value_LHE)
        embeddings_ND: Tensor = self.c_proj(values_NHE.reshape(count, channels))
        return embeddings_ND
