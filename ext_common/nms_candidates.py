"""The best entries of a large score matrix, band after band, without sorting the matrix.

Shapes: R regions, C classes, Q chunks of a row, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 64  # columns that share one maximum: large enough for few maxima, small to look into


@dataclass(frozen=True)
class Candidates:
    """Boxes that may become detections, by falling score.

    Attributes:
        boxes_K: int64, which box: a row of the box tensor at hand.
        classes_K: int64 class ids.
        scores_K: their scores.
    """

    boxes_K: Tensor
    classes_K: Tensor
    scores_K: Tensor

    def __len__(self) -> int:
        return len(self.boxes_K)

    def take(self, which: Tensor | slice) -> Candidates:
        """Those of an index, a mask or a slice."""
        return Candidates(self.boxes_K[which], self.classes_K[which], self.scores_K[which])

    def sorted_by_score(self) -> Candidates:
        """Best first; equal scores keep their order."""
        return self.take(self.scores_K.argsort(descending=True, stable=True))


def joined(parts: Sequence[Candidates]) -> Candidates:
    """All candidates of at least one part, in order."""
    return Candidates(
        torch.cat([part.boxes_K for part in parts]),
        torch.cat([part.classes_K for part in parts]),
        torch.cat([part.scores_K for part in parts]),
    )


def falling_bands(scores_RC: Tensor, threshold: float, first: int) -> Iterator[Candidates]:
    """All entries above a threshold, in bands of falling score.

    Every entry of a band is greater than all of the later bands, so whoever has enough may stop.
    A band is bounded by the n-th greatest of the maxima of short chunks of rows: at least n entries
    lie above it, and only chunks whose maximum does are looked into.

    Args:
        scores_RC: finite; any stride.
        threshold: entries are greater than this.
        first: how many entries the first band should have at least (where there are as many);
            the bound of every further band is taken twice as deep.

    Yields:
        At least one band, maybe empty: candidates whose ``boxes_K`` are row numbers, by falling
        score, equal ones by row and class.
    """
    if scores_RC.numel() == 0:
        none = torch.zeros(0, dtype=torch.int64, device=scores_RC.device)
        yield Candidates(none, none, scores_RC.flatten())
        return
    exact = torch.promote_types(scores_RC.dtype, torch.float32)
    maxima_RQ = _chunk_maxima(scores_RC).to(exact)
    ranked = maxima_RQ.flatten()
    floor = torch.tensor(threshold, dtype=exact, device=scores_RC.device)
    below = torch.full_like(floor, float("-inf"))
    upper = torch.full_like(floor, float("inf"))
    depth = first
    while True:
        lower = floor
        if depth < len(ranked):
            # just below the n-th greatest, so that ties with it belong to this band
            lower = ranked.topk(depth, sorted=False).values.min()
            lower = torch.maximum(torch.nextafter(lower, below), floor)
        yield _between(scores_RC, maxima_RQ, lower, upper).sorted_by_score()
        if not bool(lower > floor):
            return
        upper, depth = lower, 2 * depth


def _chunk_maxima(scores_RC: Tensor) -> Tensor:
    """``[R, Q]``: greatest entry of every chunk of columns, the last one shorter."""
    whole = scores_RC.shape[1] // _CHUNK * _CHUNK
    parts = [scores_RC[:, :whole].unflatten(1, (-1, _CHUNK)).amax(dim=2)] if whole else []
    if whole < scores_RC.shape[1]:
        parts.append(scores_RC[:, whole:].amax(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def _between(scores_RC: Tensor, maxima_RQ: Tensor, lower: Tensor, upper: Tensor) -> Candidates:
    """Entries with lower < entry <= upper, by row and class."""
    rows_S, chunks_S = (maxima_RQ > lower).nonzero(as_tuple=True)
    offset_W = torch.arange(min(_CHUNK, scores_RC.shape[1]), device=scores_RC.device)
    columns_SW = chunks_S[:, None] * _CHUNK + offset_W
    inside_SW = columns_SW < scores_RC.shape[1]
    last = scores_RC.shape[1] - 1
    values_SW = scores_RC[rows_S[:, None], columns_SW.clamp(max=last)]
    exact_SW = values_SW.to(maxima_RQ.dtype)
    chosen_SW = inside_SW & (exact_SW > lower) & (exact_SW <= upper)
    rows_SW = rows_S[:, None].expand_as(columns_SW)
    return Candidates(rows_SW[chosen_SW], columns_SW[chosen_SW], values_SW[chosen_SW])
