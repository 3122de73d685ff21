"""What a benchmark case is: sizes, and several ways to compute the same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Results = dict[str, Tensor]
Implementation = Callable[[], Results]

OURS = "ours"
NAIVE = "naive"


@dataclass(frozen=True)
class Problem:
    """Inputs that are ready, and the ways to compute the results from them.

    Attributes:
        implementations: by name; ``naive`` (the plain computation of the specification) is what
            all others must equal, ``ours`` is what the target speaks of. Each call does the whole
            work, for a loss forward and backward, and returns e.g. the loss and the gradients.
    """

    implementations: Mapping[str, Implementation]


@dataclass(frozen=True)
class Variant:
    """One size of a case.

    Attributes:
        name: as printed and selected with ``--variant``.
        build: makes the inputs on a device, the same for every call.
        target: how many times faster than ``naive`` ours has to be; None = no target.
        compared: makes what equality is checked on where that is not what is timed: the same size
            in float64, for computations that magnify the rounding of float32.
    """

    name: str
    build: Callable[[torch.device], Problem]
    target: float | None = None
    compared: Callable[[torch.device], Problem] | None = None


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        name: as on the command line.
        what: one line for ``--list``.
        variants: sizes to measure.
        tiny: a size that runs in milliseconds, for tests and warming up.
        tolerance: allowed difference of every result, as a share of its largest magnitude.
        most_repeats: fewer timed calls than ``--repeat`` says, for calls of many seconds, with one
            call before them; None = as many as it says.
    """

    name: str
    what: str
    variants: tuple[Variant, ...]
    tiny: Variant
    tolerance: float = 1e-6
    most_repeats: int | None = None

    def variant(self, name: str) -> Variant:
        """The variant of a name (``tiny`` included)."""
        return {v.name: v for v in (self.tiny, *self.variants)}[name]
