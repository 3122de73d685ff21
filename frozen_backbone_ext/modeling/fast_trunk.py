"""A private copy of a frozen trunk that is as fast as an inference network can be (spec 8.1).

Shape suffixes: N images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ext_common.errors import ConfigError
from frozen_backbone_ext.modeling.bn_folding import folded_copy

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FastOptions:
    """How the copy computes. With all defaults there is no copy.

    Args:
        fold_bn: batch norms become part of the convolutions.
        dtype: of weights and maps: ``fp32``, ``bf16`` or ``fp16``.
        channels_last: memory layout of maps and weights.
        compile: through ``torch.compile``; for pictures of one size.

    Raises:
        ConfigError: an unknown dtype.
    """

    fold_bn: bool = False
    dtype: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"unknown type {self.dtype!r}",
                where="MODEL.BACKBONE_FREEZE.DTYPE",
                fix=f"one of {', '.join(DTYPES)}",
            )

    @property
    def plain(self) -> bool:
        """Whether the trunk itself computes."""
        return self == FastOptions()


class FastTrunk:
    """The copy; the trunk keeps its own float32 weights under their names, for checkpoints.

    Args:
        trunk: a plain module in evaluation mode that nobody else uses.
        sample_NCHW: pictures that it can read, to find the norms to fold.
        options: see there.
    """

    def __init__(self, trunk: nn.Module, sample_NCHW: Tensor, options: FastOptions) -> None:
        self.options = options
        self.folded = 0
        if options.fold_bn:
            trunk, self.folded = folded_copy(trunk, sample_NCHW)
            logger.info("frozen trunk: %d batch norms folded into convolutions", self.folded)
        trunk = trunk.to(DTYPES[options.dtype]).requires_grad_(False)
        if options.channels_last:
            plain: Any = trunk  # torch's annotations do not know this argument
            plain.to(memory_format=torch.channels_last)
        if options.compile:
            trunk.compile()
        self.trunk = trunk

    @torch.no_grad()
    def __call__(self, images_NCHW: Tensor) -> dict[str, Tensor]:
        """The trunk's maps; under autocast in the copy's type, otherwise in that of the images."""
        device = images_NCHW.device.type
        mixed = torch.is_autocast_enabled(device)
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        pictures_NCHW = images_NCHW.to(DTYPES[self.options.dtype]).contiguous(memory_format=layout)
        with torch.autocast(device, enabled=False):
            maps: dict[str, Tensor] = self.trunk(pictures_NCHW)
        if mixed:
            return maps
        return {name: map_NCHW.to(images_NCHW.dtype) for name, map_NCHW in maps.items()}


def private_copy(module: nn.Module) -> Any:
    """A deep copy without hooks, which would act on the original."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        part._load_state_dict_post_hooks.clear()
    return copied
