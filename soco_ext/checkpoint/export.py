"""The online network under detectron2's names, for fine-tuning (specification 5.1).

Names of detectors end with these names, so that MODEL.WEIGHTS of any ResNet detector takes the
file: ``res2.0.conv1.weight`` is ``backbone.bottom_up.res2.0.conv1.weight`` of Mask R-CNN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor

from ext_common.errors import WeightsError
from ext_common.registries import WEIGHT_EXPORT_REGISTRY
from ext_common.weights_export import ExportedWeights

PARTS = ("backbone", "detector")
"""What is exported: the ResNet alone (the released C4 converter), or pyramid and box head too."""

# names of one training process and of several
_PREFIX = re.compile(r"^(module\.)?")
_ENCODER = re.compile(r"encoder\.(.+)")
_NECK = re.compile(r"neck\.(lateral|fpn)_convs\.(\d+)\.(conv|bn)\.(.+)")
_LATERAL = re.compile(r"neck\.lateral_convs\.\d+\.conv\.weight")
_HEAD = re.compile(r"head\.(conv|bn|fc)(\d+)\.(.+)")
_STAGE = re.compile(r"layer(\d)\.(\d+)\.(.+)")
RELEASED_LEVELS = range(2, 6)  # P2 to P5


def detectron2_name(
    name: str, part: str = "detector", levels: range = RELEASED_LEVELS
) -> str | None:
    """The name that a tensor of a SoCo model has in detectron2; None for what is not exported.

    Args:
        name: with or without ``module.``.
        part: of :data:`PARTS`.
        levels: P2 and so on, those of the pyramid that belong to a map of the encoder.
    """
    name = _PREFIX.sub("", name, count=1)
    if match := _ENCODER.fullmatch(name):
        return None if behind(match[1], levels) else _encoder_name(match[1])
    if part == "backbone":
        return None
    if match := _NECK.fullmatch(name):
        if int(match[2]) >= len(levels):
            return None  # a coarser level; detectron2's have no norms
        kind = "lateral" if match[1] == "lateral" else "output"
        norm = ".norm" if match[3] == "bn" else ""
        return f"fpn_{kind}{levels[int(match[2])]}{norm}.{match[4]}"
    if match := _HEAD.fullmatch(name):
        if match[1] == "bn":
            return f"box_head.conv{match[2]}.norm.{match[3]}"
        return f"box_head.{match[1]}{match[2]}.{match[3]}"
    return None


def behind(name: str, levels: range) -> bool:
    """Whether an encoder's weight belongs to a stage that no level needed: it was never trained."""
    match = _STAGE.fullmatch(name)
    return match is not None and int(match[1]) + 1 >= levels.stop


def name_mapping(
    names: Iterable[str], part: str = "detector", levels: range = RELEASED_LEVELS
) -> dict[str, str]:
    """Names that are exported, each with its name in detectron2."""
    pairs = ((name, detectron2_name(name, part, levels)) for name in names)
    return {name: new for name, new in pairs if new is not None}


def for_detectron2(tensors: Mapping[str, Tensor], part: str = "detector") -> ExportedWeights:
    """The online network of a pretraining as weights for a detector.

    Args:
        tensors: of our checkpoints or of the released ones, pyramid or C4.
        part: of :data:`PARTS`; a C4 model has a backbone only.

    Raises:
        WeightsError: not a SoCo model.
    """
    mapping = name_mapping(tensors, part, levels_of(tensors))
    if not mapping:
        raise WeightsError(
            f"no name begins with encoder.: {', '.join(list(tensors)[:3])}",
            fix="a checkpoint of SoCo's pretraining is needed",
        )
    renamed = {new: tensors[name] for name, new in mapping.items()}
    return ExportedWeights(renamed, by_suffix=True)


def levels_of(tensors: Mapping[str, Tensor]) -> range:
    """The levels of a pyramid that belong to a map of the encoder, by the widths of both."""
    shapes = {_PREFIX.sub("", name, count=1): value.shape for name, value in tensors.items()}
    laterals = [shape[1] for name, shape in shapes.items() if _LATERAL.fullmatch(name)]
    for level in RELEASED_LEVELS:
        # the last norm of a block is as wide as the map: bn3 of bottlenecks, bn2 of others
        block = f"encoder.layer{level - 1}.0.bn"
        width = shapes.get(f"{block}3.weight", shapes.get(f"{block}2.weight"))
        if laterals and width is not None and width[0] == laterals[0]:
            return range(level, level + len(laterals))
    return RELEASED_LEVELS


def _encoder_name(name: str) -> str:
    """torchvision's name of a ResNet weight, in detectron2."""
    prefix = "stem."
    if match := _STAGE.fullmatch(name):
        prefix, name = f"res{int(match[1]) + 1}.{match[2]}.", match[3]
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return prefix + re.sub(r"^bn(\d+)\.", r"conv\1.norm.", name)


WEIGHT_EXPORT_REGISTRY._do_register("soco-fpn", partial(for_detectron2, part="detector"))
WEIGHT_EXPORT_REGISTRY._do_register("soco-c4", partial(for_detectron2, part="backbone"))
