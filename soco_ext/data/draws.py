"""Random numbers of one sample, apart from what is computed with them.

Everything that is drawn for views and boxes comes from one :class:`Draws`, so that recorded numbers can
take its place in tests.
"""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Draws(Protocol):
    """What the views need."""

    def uniform(self, low: float, high: float) -> float:
        """A number in low..high."""

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""

    def choose(self, count: int, of: int) -> NDArray[np.int64]:
        """``count`` different places below ``of``, in random order."""

    def repeat(self, count: int, of: int) -> NDArray[np.int64]:
        """``count`` places below ``of``, which may be equal."""


class GeneratorDraws:
    """Draws from a NumPy generator.

    Args:
        generator: seeded for the sample.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    @classmethod
    def of_sample(cls) -> GeneratorDraws:
        """A generator that is seeded by Python's, which the loader seeds for every sample."""
        return cls(np.random.default_rng(random.getrandbits(128)))

    def uniform(self, low: float, high: float) -> float:
        """A number in low..high."""
        return low + (high - low) * float(self.generator.random())

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.generator.integers(low, high, endpoint=True))

    def choose(self, count: int, of: int) -> NDArray[np.int64]:
        """``count`` different places below ``of``, in random order."""
        return self.generator.permutation(of)[:count]

    def repeat(self, count: int, of: int) -> NDArray[np.int64]:
        """``count`` places below ``of``, which may be equal."""
        return self.generator.integers(of, size=count)
