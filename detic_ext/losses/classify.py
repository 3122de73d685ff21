"""How a loss asks for logits, so that it computes no more of them than it uses.

Shapes: R regions, K columns, M chosen regions, S chosen columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Classify(Protocol):
    """Logits of some regions at some columns; the region features live in the callee."""

    def __call__(self, rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            rows_M: int64 region numbers, in this order, repeats allowed; None = all R.
            columns_S: int64 column numbers, in this order; None = all K.

        Returns:
            Logits ``[R or M, K or S]``, differentiable in whatever the callee trains.
        """
        ...


@dataclass(frozen=True)
class KnownLogits:
    """A :class:`Classify` over logits that were computed already."""

    logits_RK: Tensor

    def __call__(self, rows_M: Tensor | None = None, columns_S: Tensor | None = None) -> Tensor:
        """Logits looked up; see :class:`Classify`."""
        logits = self.logits_RK if rows_M is None else self.logits_RK.index_select(0, rows_M)
        return logits if columns_S is None else logits.index_select(1, columns_S)
