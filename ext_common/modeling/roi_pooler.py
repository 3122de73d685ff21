"""detectron2's ROI pooler from a head's configuration node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler


def build_roi_pooler(
    node: CfgNode, names: Sequence[str], shapes: Mapping[str, ShapeSpec]
) -> ROIPooler:
    """A pooler over the named maps.

    Args:
        node: such as ``MODEL.ROI_BOX_HEAD``: its ``POOLER_*`` keys.
        names: of the maps, finest first.
        shapes: stride of every map.
    """
    return ROIPooler(
        output_size=node.POOLER_RESOLUTION,
        scales=tuple(1.0 / shapes[name].stride for name in names),
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        pooler_type=node.POOLER_TYPE,
    )
