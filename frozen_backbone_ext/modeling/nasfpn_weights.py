"""Names of mmdetection's NAS-FPN weights in ours (spec 10)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ext_common.errors import WeightsError

MM_CELLS = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "sum_55_5", "sum_77_7", "gp_75_6")
"""mmdetection's names of cells 0 to 6; ``gp_43_5`` and ``gp_54_7`` hold no weights."""

_RULES = (
    (r"lateral_convs\.([012])\.(conv\.weight|bn\..+)", lambda m: f"lateral.{3 + int(m[1])}.{m[2]}"),
    (
        r"extra_downsamples\.([01])\.0\.(conv\.weight|bn\..+)",
        lambda m: f"extra.{6 + int(m[1])}.{m[2]}",
    ),
    (
        r"fpn_stages\.(\d+)\.(\w+)\.out_conv\.(conv\.(?:weight|bias)|bn\..+)",
        lambda m: f"cells.{m[1]}.{MM_CELLS.index(m[2])}.{m[3]}",
    ),
)


def from_mmdetection(tensors: Mapping[str, Tensor], *, prefix: str = "neck.") -> dict[str, Tensor]:
    """Weights for a :class:`NasFpn` of form ``NasFpnOptions().as_mmdetection()``.

    Args:
        tensors: of a detector, or of the neck alone.
        prefix: of the neck's names in a detector; names without it are left out where any has it.

    Raises:
        WeightsError: a name of the neck that has no place, or none at all.
    """
    if any(name.startswith(prefix) for name in tensors):
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    renamed = {_translate(name): tensor for name, tensor in tensors.items()}
    if not renamed:
        raise WeightsError("no weights of a NAS-FPN", fix=f"names start with {prefix!r}")
    return renamed


def _translate(name: str) -> str:
    for pattern, rename in _RULES:
        match = re.fullmatch(pattern, name)
        if match and (match[2] in MM_CELLS or not name.startswith("fpn_stages")):
            return rename(match)
    raise WeightsError(
        f"{name} is no weight of mmdetection's NASFPN", fix="see docs/frozen_backbone.md"
    )
