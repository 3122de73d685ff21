"""The searched graph of NAS-FPN: which maps are merged into which (spec 2.2).

Nodes 0..4 are the inputs P3..P7 of a repeat, nodes 5..11 the results of cells 0..6.
"""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = (3, 4, 5, 6, 7)
"""Pyramid levels; the stride of level l is 2^l."""


@dataclass(frozen=True)
class Cell:
    """One merging cell.

    Args:
        level: of its result.
        coarse, fine: the nodes that are merged, by their own level; for a sum the order is free.
        attention: merged by attention, not by addition.
        extra: an input node of the same level that is added to the merged map.
        output: its result is the repeat's map of that level.
    """

    level: int
    coarse: int
    fine: int
    attention: bool = False
    extra: int | None = None
    output: bool = True

    @property
    def inputs(self) -> tuple[int, ...]:
        """All nodes that the cell reads."""
        return (self.coarse, self.fine) + (() if self.extra is None else (self.extra,))


CELLS = (
    Cell(level=4, coarse=3, fine=1, attention=True, output=False),  # node 5: P4a
    Cell(level=4, coarse=5, fine=1, output=False),  # node 6: P4b
    Cell(level=3, coarse=6, fine=0),  # node 7: P3
    Cell(level=4, coarse=6, fine=7),  # node 8: P4
    Cell(level=5, coarse=8, fine=7, attention=True, extra=2),  # node 9: P5
    Cell(level=7, coarse=9, fine=6, attention=True, extra=4),  # node 10: P7
    Cell(level=6, coarse=10, fine=9, attention=True),  # node 11: P6
)
"""The seven cells of a repeat, in the order in which they are computed."""

NODE_LEVELS = (*LEVELS, *(cell.level for cell in CELLS))
"""Level of every node."""


def parameter_count(width: int, in_channels: tuple[int, int, int], repeats: int) -> int:
    """Trained numbers of the published form with plain convolutions (spec 10)."""
    laterals = sum(in_channels) * width + 3 * width + 3 * 2 * width
    return laterals + repeats * len(CELLS) * (9 * width * width + width + 2 * width)
