"""Losses and gradients that are NaN or infinite: the error, and what is known about the step.

Works without detectron2 and without a cfg. Nothing here runs in a healthy step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ext_common.errors import ExtError

ADVICE = "lower SOLVER.BASE_LR, clip gradients, or look at the annotations of these images"
_MOST_IMAGES_NAMED = 8
_MOST_PARAMETERS_NAMED = 50


class NonFiniteLossError(ExtError, FloatingPointError):
    """A loss or a gradient became NaN or infinite. The weights are those of the step before."""


@dataclass(frozen=True)
class ProcessStep:
    """What one process saw in a step.

    Args:
        losses: by name.
        images: ids (file names where there are none) of its batch.
    """

    losses: dict[str, float]
    images: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """Whether all its losses are."""
        return all(math.isfinite(value) for value in self.losses.values())


@dataclass(frozen=True)
class NonFiniteStep:
    """A step that did not update the weights.

    Args:
        iteration: of the run.
        processes: all of them, or only this one where the model itself raised the error.
        gradient_norms: L2 norm by parameter, non-finite ones first, then the largest; none where
            the backward pass was not reached.
        learning_rates: by parameter group.
        reason: of the model's own check, or empty.
    """

    iteration: int
    processes: tuple[ProcessStep, ...]
    gradient_norms: dict[str, float]
    learning_rates: tuple[float, ...]
    reason: str = ""

    def error(self) -> NonFiniteLossError:
        """The error to stop with; it names the first process whose losses are not finite."""
        if self.reason:
            text = f"{self.reason} Iteration {self.iteration}."
            return NonFiniteLossError(text, where=image_text(self.processes[0].images), fix=ADVICE)
        for rank, seen in enumerate(self.processes):
            if not seen.finite:
                shown = ", ".join(f"{name}={value:.4g}" for name, value in seen.losses.items())
                return NonFiniteLossError(
                    f"non-finite loss at iteration {self.iteration}: {shown}",
                    where=self._place(rank),
                    fix=ADVICE,
                )
        bad = [name for name, norm in self.gradient_norms.items() if not math.isfinite(norm)]
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        return NonFiniteLossError(
            f"non-finite gradient at iteration {self.iteration}, all losses finite: "
            f"{', '.join(bad[:3])}{more}",
            where=image_text([name for seen in self.processes for name in seen.images]),
            fix=ADVICE,
        )

    def _place(self, rank: int) -> str:
        images = image_text(self.processes[rank].images)
        return f"process {rank}, {images}" if len(self.processes) > 1 else images


def gradient_norms(model: nn.Module, scale: float = 1.0) -> dict[str, float]:
    """L2 norms of the gradients by parameter name, worst first.

    Args:
        model: after a backward pass.
        scale: what the loss was multiplied by.
    """
    norms = {
        name: float(parameter.grad.detach().float().norm()) / scale
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    worst = sorted(norms, key=lambda name: _worst_first(norms[name]))
    return {name: norms[name] for name in worst[:_MOST_PARAMETERS_NAMED]}


def _worst_first(norm: float) -> tuple[bool, float]:
    return (True, -norm) if math.isfinite(norm) else (False, 0.0)


def image_ids(batch: Any) -> tuple[str, ...]:
    """Ids of the images in a batch of detectron2's kind."""
    if not isinstance(batch, Sequence):
        return ()
    return tuple(
        str(item.get("image_id", item.get("file_name", "?")))
        for item in batch
        if isinstance(item, Mapping)
    )


def image_text(ids: Sequence[str]) -> str:
    """Which images are in a batch, as short text."""
    if not ids:
        return "a batch without image ids"
    rest = len(ids) - _MOST_IMAGES_NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"images {', '.join(ids[:_MOST_IMAGES_NAMED])}{more}"
