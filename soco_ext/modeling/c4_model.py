"""SoCo with the last stage of the ResNet as region head (specification 3.3).

Shapes: N images, K boxes per image and set, C width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from soco_ext.modeling.build import embedding_networks, encoder_of, momentum_of, prepared
from soco_ext.modeling.contrast import ContrastiveModel, MomentumOptions, normalised
from soco_ext.modeling.correspondence import same_object
from soco_ext.modeling.region_pooling import map_rois, pool_regions
from soco_ext.modeling.view_batch import BoxPair, BoxSet
from soco_ext.modeling.view_passes import EACH, check_view_passes, maps_of_views

POOLED_SIZE = 14
"""Side of a pooled region, always half-pixel aligned: the released model ignores the options."""


@META_ARCH_REGISTRY.register()
class SoCoC4(ContrastiveModel):
    """Online and target network without pyramid.

    The released checkpoints also hold the queue of another method; it is not kept.

    Args:
        encoder: with ``c4`` (image to the map of stride 16) and ``layer4``.
        projector: region vectors to embeddings.
        predictor: online embeddings to target embeddings.
        momentum: how the target follows.
        view_passes: how often the encoder runs, see ``view_passes``.
    """

    optional_weights = ("queue", "queue_ptr")

    @configurable
    def __init__(
        self,
        *,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        momentum: MomentumOptions | None = None,
        view_passes: str = EACH,
    ) -> None:
        super().__init__(
            parts={"encoder": encoder, "projector": projector},
            predictor=predictor,
            momentum=momentum or MomentumOptions(),
        )
        self.view_passes = check_view_passes(view_passes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Networks of ``MODEL.RESNETS.DEPTH`` and ``SOCO``."""
        encoder = encoder_of(cfg)
        parts = {"encoder": encoder, **embedding_networks(cfg, encoder.channels[-1])}
        return {
            **{name: prepared(part, cfg) for name, part in parts.items()},
            "momentum": momentum_of(cfg),
            "view_passes": cfg.SOCO.VIEW_PASSES,
        }

    def embed(
        self, parts: Mapping[str, nn.Module], views: Sequence[Tensor], sets: Sequence[BoxSet]
    ) -> list[Tensor]:
        """Vectors [N, K, C] per box set."""
        encoder: Any = parts["encoder"]
        passes = self.view_passes
        maps = maps_of_views(lambda view: [encoder.c4(view)], [encoder], views, passes)
        regions = []
        for box_set in sets:
            (map_NCHW,) = maps[box_set.view]
            rois = map_rois(box_set.boxes_NK5, *map_NCHW.shape[-2:])
            regions.append(pool_regions(map_NCHW, rois, POOLED_SIZE, aligned=True))
        pooled = maps_of_views(lambda x: [encoder.layer4(x)], [encoder], regions, passes)
        vectors_of_sets = [map_NCHW.mean(dim=(2, 3)) for (map_NCHW,) in pooled]
        vectors = parts["projector"](torch.cat(vectors_of_sets), len(sets))
        if "predictor" in parts:
            vectors = parts["predictor"](vectors, len(sets))
        shape = (*sets[0].boxes_NK5.shape[:2], -1)
        return [rows.view(shape) for rows in vectors.chunk(len(sets))]

    def matrix(self, pair: BoxPair) -> Tensor:
        """Equality of ids, [N, K, K]."""
        if pair.matrix_NMM is not None:
            return pair.matrix_NMM
        return same_object(pair.first.boxes_NK5[..., 4], pair.second.boxes_NK5[..., 4])

    @torch.no_grad()
    def embed_boxes(
        self, view_N3HW: Tensor, boxes_NK5: Tensor, levels_NK: Tensor | None = None
    ) -> Tensor:
        """Object embeddings of the online network without predictor, of length 1: [N, K, C]."""
        parts = {name: getattr(self, name) for name in self.part_names}
        (vectors_NKC,) = self.embed(parts, [view_N3HW], [BoxSet(0, boxes_NK5)])
        return normalised(vectors_NKC)
