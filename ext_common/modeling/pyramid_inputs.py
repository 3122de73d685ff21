"""Which of a backbone's maps a pyramid neck starts from."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from ext_common.errors import ConfigError


def pyramid_inputs(cfg: CfgNode, bottom_up: Backbone) -> list[str]:
    """Names of the maps of ``MODEL.FPN.IN_FEATURES``, finest first; empty takes all.

    Raises:
        ConfigError: a feature that the backbone does not give, or strides that do not double from
            map to map.
    """
    shapes = bottom_up.output_shape()
    names = list(cfg.MODEL.FPN.IN_FEATURES) or list(shapes)
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise ConfigError(
            f"{', '.join(unknown)} is not among the backbone's outputs {', '.join(shapes)}",
            where="MODEL.FPN.IN_FEATURES",
            fix="change it, or the backbone's output levels",
        )
    strides = [shapes[name].stride for name in names]
    if any(coarse != 2 * fine for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ConfigError(
            f"strides {strides} of {', '.join(names)} do not double from map to map",
            where="MODEL.FPN.IN_FEATURES",
            fix="choose neighbouring levels, finest first",
        )
    return names
