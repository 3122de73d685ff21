"""The online network under mmdetection's names (specification 5.1).

The detector needs a box head of four shared convolutions and one shared layer with norms
(``Shared4Conv1FCBBoxHead``, ``norm_cfg`` BN or SyncBN).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ext_common.errors import WeightsError
from ext_common.registries import WEIGHT_EXPORT_REGISTRY
from ext_common.weights_export import ExportedWeights
from soco_ext.checkpoint.export import RELEASED_LEVELS, behind, levels_of

_BOX_HEAD = "roi_head.bbox_head."
_ENCODER = re.compile(r"encoder\.(.+)")
_NECK = re.compile(r"neck\..+")
_HEAD = re.compile(r"head\.(conv|bn|fc)(\d+)\.(.+)")


def mmdet_name(name: str, levels: range = RELEASED_LEVELS) -> str | None:
    """The name that a tensor of a SoCo model has in mmdetection; None for what is not exported.

    Args:
        name: with or without ``module.``.
        levels: P2 and so on, those of the pyramid that belong to a map of the encoder.
    """
    name = name.removeprefix("module.")
    if match := _ENCODER.fullmatch(name):
        if behind(match[1], levels):
            return None
        return f"backbone.{match[1]}"  # a ResNet has the same names there
    if _NECK.fullmatch(name):
        return name
    if match := _HEAD.fullmatch(name):
        kind, number, rest = match[1], int(match[2]) - 1, match[3]
        if kind == "fc":
            return f"{_BOX_HEAD}shared_fcs.{number}.{rest}"
        return f"{_BOX_HEAD}shared_convs.{number}.{kind}.{rest}"
    return None


def for_mmdet(tensors: Mapping[str, Tensor]) -> ExportedWeights:
    """The online network of a pretraining as weights for mmdetection (``.pth`` only).

    Args:
        tensors: of our checkpoints or of the released ones, pyramid or C4 (the backbone only).

    Raises:
        WeightsError: not a SoCo model.
    """
    levels = levels_of(tensors)
    pairs = ((mmdet_name(name, levels), value) for name, value in tensors.items())
    renamed = {new: value for new, value in pairs if new is not None}
    if not any(name.startswith("backbone.") for name in renamed):
        raise WeightsError(
            f"no name begins with encoder.: {', '.join(list(tensors)[:3])}",
            fix="a checkpoint of SoCo's pretraining is needed",
        )
    return ExportedWeights(renamed, mmdet=True)


WEIGHT_EXPORT_REGISTRY._do_register("soco-mmdet", for_mmdet)
