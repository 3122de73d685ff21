"""Stages that student and teacher compute alike, run once for both (design note 14).

Both start from the same CLIP, and the student's stem and first stage stay frozen: as long as these
are equal in both, so are their maps.

Legend: N images, C channels, H, W cells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regionclip_ext.modeling.clip_resnet import STAGES, ClipResNet

logger = logging.getLogger(__name__)

_STEM = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")


@dataclass(frozen=True)
class FirstMaps:
    """Maps behind the first stages.

    Attributes:
        maps_NCHW: an ordinary tensor without gradient.
        stages: how many stages behind the stem were run.
    """

    maps_NCHW: Tensor
    stages: int


class SharedStages:
    """Finds out how far two encoders are the same, and runs them that far once.

    Weights are compared bit by bit when the first batch comes, and again after any of them was
    written (a checkpoint was loaded), which waits for the device; other steps only look at version
    counters.
    """

    def __init__(self) -> None:
        self._seen: tuple[object, ...] | None = None
        self._stages: int | None = None

    def __call__(
        self, student: ClipResNet, teacher: ClipResNet, images_NCHW: Tensor
    ) -> FirstMaps | None:
        """The common maps of a batch.

        Args:
            student: its frozen first stages are what can be shared.
            teacher: frozen as a whole.
            images_NCHW: normalised.

        Returns:
            None where not even the stems are the same.
        """
        stages = self.stages(student, teacher)
        if stages is None:
            return None
        with torch.no_grad():
            return FirstMaps(student.first_stages(images_NCHW, stages), stages)

    def stages(self, student: ClipResNet, teacher: ClipResNet) -> int | None:
        """How many stages behind the stem are shared; None = not even the stem."""
        versions = tuple(
            (id(tensor), tensor._version, tensor.requires_grad)
            for encoder in (student, teacher)
            for part in _parts(encoder)
            for tensor in _tensors(part)
        )
        if versions != self._seen:
            self._seen, self._stages = versions, common_stages(student, teacher)
            shared = "nothing" if self._stages is None else f"the stem and {self._stages} stages"
            logger.info("student and teacher share %s", shared)
        return self._stages


def common_stages(student: ClipResNet, teacher: ClipResNet) -> int | None:
    """How many stages behind the stem are frozen in the student and equal in both.

    Returns:
        At most as many as lie before or at the first map that either gives; None = not even the
        stem.
    """
    first = min(STAGES.index(name) + 1 for e in (student, teacher) for name in e.output_shape())
    found = None
    for stages, (mine, other) in enumerate(zip(_parts(student), _parts(teacher), strict=True)):
        if stages > first or not _frozen_and_equal(mine, other):
            break
        found = stages
    return found


def run_encoder(encoder: ClipResNet, images_NCHW: Tensor, first: FirstMaps | None) -> Tensor:
    """The encoder's ``res4`` map, from the common maps where there are some."""
    if first is None:
        return encoder(images_NCHW)["res4"]
    return encoder.later_stages(first.maps_NCHW, first.stages)["res4"]


def _parts(encoder: ClipResNet) -> list[list[nn.Module]]:
    """The stem, then every stage."""
    stem = [encoder.get_submodule(name) for name in _STEM]
    return [stem, *([encoder.get_submodule(f"layer{n}")] for n in range(1, len(STAGES) + 1))]


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    """Parameters and buffers: frozen batch norms have only the latter."""
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _frozen_and_equal(mine: list[nn.Module], other: list[nn.Module]) -> bool:
    own, theirs = list(_tensors(mine)), list(_tensors(other))
    return (
        len(own) == len(theirs)
        and not any(tensor.requires_grad for tensor in own)
        and all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))
    )
