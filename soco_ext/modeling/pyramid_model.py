"""SoCo and SoCo* with a feature pyramid (specification 3.1).

``dense`` is the released computation: every box on every level, each box set and level with batch
statistics of its own, of which the loss reads the box's own level. It runs the head once, norms
within groups, and pools all box sets of a view together; the results are those of one run per set
and level. ``sparse`` pools a box on its own level only: a quarter of the work, other statistics.

Shapes: N images, K boxes per image and set, P levels, C channels or width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ext_common.errors import ConfigError
from soco_ext.modeling.build import embedding_networks, encoder_of, momentum_of, prepared
from soco_ext.modeling.contrast import ContrastiveModel, MomentumOptions, normalised
from soco_ext.modeling.correspondence import same_object_assigned, same_object_by_level
from soco_ext.modeling.fpn import FeaturePyramid, PyramidLevels
from soco_ext.modeling.heads import RegionHead
from soco_ext.modeling.region_pooling import map_rois, pool_regions
from soco_ext.modeling.view_batch import BoxPair, BoxSet
from soco_ext.modeling.view_passes import EACH, check_view_passes, maps_of_views

DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True)
class RegionOptions:
    """How boxes are pooled.

    Args:
        level_use: ``dense`` (as released) or ``sparse``.
        size: side of a pooled region.
        aligned: half-pixel rule of RoIAlign.

    Raises:
        ConfigError: another use of levels, or a region of no size.
    """

    level_use: str = DENSE
    size: int = 7
    aligned: bool = True

    def __post_init__(self) -> None:
        if self.level_use not in (DENSE, SPARSE):
            raise ConfigError(
                f"{self.level_use!r} is not known", where="SOCO.LEVEL_USE", fix="dense or sparse"
            )
        if self.size < 1:
            raise ConfigError(
                f"regions of {self.size} x {self.size}",
                where="SOCO.POOLER_RESOLUTION",
                fix="1 or more, such as 7",
            )


def pyramid_levels(cfg: CfgNode) -> PyramidLevels:
    """``SOCO.PYRAMID``.

    Raises:
        ConfigError: see :class:`PyramidLevels`.
    """
    keys = cfg.SOCO.PYRAMID
    return PyramidLevels(
        keys.START_LEVEL,
        keys.END_LEVEL,
        keys.NUM_OUTS,
        keys.EXTRA_LEVELS,
        keys.RELU_BEFORE_EXTRA_CONVS,
    )


@META_ARCH_REGISTRY.register()
class SoCoFPN(ContrastiveModel):
    """Online and target network with pyramid; any number of views.

    Args:
        encoder: image to maps, finest first.
        neck: maps to P maps of one width.
        head: regions to vectors.
        projector: vectors to embeddings.
        predictor: online embeddings to target embeddings.
        regions: how boxes are pooled.
        momentum: how the target follows.
        view_passes: how often the backbone runs, see ``view_passes``.
    """

    @configurable
    def __init__(
        self,
        *,
        encoder: nn.Module,
        neck: FeaturePyramid,
        head: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        regions: RegionOptions | None = None,
        momentum: MomentumOptions | None = None,
        view_passes: str = EACH,
    ) -> None:
        super().__init__(
            parts={"encoder": encoder, "neck": neck, "head": head, "projector": projector},
            predictor=predictor,
            momentum=momentum or MomentumOptions(),
        )
        self.regions = regions or RegionOptions()
        self.view_passes = check_view_passes(view_passes)
        self._num_levels = neck.levels.outs
        self.coarsest_stride = neck.coarsest_stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Networks of ``MODEL.RESNETS.DEPTH`` and ``SOCO``."""
        soco = cfg.SOCO
        encoder = encoder_of(cfg)
        levels = pyramid_levels(cfg)
        neck = FeaturePyramid(encoder.channels, cfg.MODEL.FPN.OUT_CHANNELS, levels)
        encoder.use_maps(levels.stop(len(encoder.channels)))
        size = soco.POOLER_RESOLUTION
        head = RegionHead(neck.out_channels, size, soco.HEAD_CONVS, soco.HEAD_DIM)
        parts = {
            "encoder": encoder,
            "neck": neck,
            "head": head,
            **embedding_networks(cfg, head.output_dim),
        }
        return {
            **{name: prepared(part, cfg) for name, part in parts.items()},
            "regions": RegionOptions(soco.LEVEL_USE, size, soco.POOLER_ALIGNED),
            "momentum": momentum_of(cfg),
            "view_passes": soco.VIEW_PASSES,
        }

    def embed(
        self, parts: Mapping[str, nn.Module], views: Sequence[Tensor], sets: Sequence[BoxSet]
    ) -> list[Tensor]:
        """Vectors [N, M, C] per box set; M is P * K with the level outer (dense), or K (sparse)."""
        backbone = parts["encoder"], parts["neck"]
        maps = maps_of_views(
            lambda view: backbone[1](backbone[0](view)), backbone, views, self.view_passes
        )
        if self.regions.level_use == SPARSE:
            return self._sparse(parts, maps, sets)
        regions: dict[tuple[int, int], Tensor] = {}
        for view, levels in enumerate(maps):
            own = [i for i, box_set in enumerate(sets) if box_set.view == view]
            for level, map_NCHW in enumerate(levels):
                for i, pooled in zip(own, self._pool(map_NCHW, sets, own), strict=True):
                    regions[i, level] = pooled
        count = len(maps[0])
        order = [regions[i, level] for i in range(len(sets)) for level in range(count)]
        vectors = _run(parts, torch.cat(order), groups=len(order)).chunk(len(sets))
        shape = (count, *sets[0].boxes_NK5.shape[:2], -1)
        return [rows.view(shape).permute(1, 0, 2, 3).flatten(1, 2) for rows in vectors]

    def matrix(self, pair: BoxPair) -> Tensor:
        """[N, M, M], made of ids and levels where the pair brings no matrix."""
        if pair.matrix_NMM is not None:
            return pair.matrix_NMM
        a, b = pair.first, pair.second
        device = a.boxes_NK5.device
        levels_a, levels_b = _levels(a), _levels(b)
        ids = a.boxes_NK5[..., 4], b.boxes_NK5[..., 4]
        own = levels_a.to(device, non_blocking=True), levels_b.to(device, non_blocking=True)
        if self.regions.level_use == SPARSE:
            return same_object_assigned(ids[0], own[0], ids[1], own[1])
        return same_object_by_level(ids[0], own[0], ids[1], own[1], self._num_levels)

    @torch.no_grad()
    def embed_boxes(self, view_N3HW: Tensor, boxes_NK5: Tensor, levels_NK: Tensor) -> Tensor:
        """Object embeddings of the online network without predictor, of length 1: [N, K, C].

        Args:
            view_N3HW: normalised RGB.
            boxes_NK5: normalised boxes.
            levels_NK: level of each box; -1 counts as the finest.
        """
        parts = {name: getattr(self, name) for name in self.part_names}
        maps = [parts["neck"](parts["encoder"](view_N3HW))]
        (vectors_NKC,) = self._sparse(parts, maps, [BoxSet(0, boxes_NK5, levels_NK.cpu())])
        return normalised(vectors_NKC)

    def _pool(self, map_NCHW: Tensor, sets: Sequence[BoxSet], own: Sequence[int]) -> list[Tensor]:
        """All boxes of the view's sets at once, [N * K, C, S, S] per set."""
        if not own:
            return []
        rois = [map_rois(sets[i].boxes_NK5, *map_NCHW.shape[-2:]) for i in own]
        options = self.regions
        pooled = pool_regions(map_NCHW, torch.cat(rois), options.size, aligned=options.aligned)
        return list(pooled.split([len(part) for part in rois]))

    def _sparse(
        self,
        parts: Mapping[str, nn.Module],
        maps: Sequence[Sequence[Tensor]],
        sets: Sequence[BoxSet],
    ) -> list[Tensor]:
        regions = [self._pool_own_levels(maps[box_set.view], box_set) for box_set in sets]
        vectors = _run(parts, torch.cat(regions), groups=len(sets)).chunk(len(sets))
        shape = (*sets[0].boxes_NK5.shape[:2], -1)
        return [rows.view(shape) for rows in vectors]

    def _pool_own_levels(self, levels: Sequence[Tensor], box_set: BoxSet) -> Tensor:
        """Every box from its own map, [N * K, C, S, S]; without a level from the finest."""
        # chosen on the CPU, where the levels are: the device is not waited for
        own = _levels(box_set).flatten().clamp(min=0)
        device = box_set.boxes_NK5.device
        found, pooled = [], []
        untouched = box_set.boxes_NK5.new_zeros(())
        for level, map_NCHW in enumerate(levels):
            rows = (own == level).nonzero().flatten()
            if not len(rows):
                untouched = untouched + map_NCHW.flatten()[0]
                continue
            rois = map_rois(box_set.boxes_NK5, *map_NCHW.shape[-2:])
            rois = rois[rows.to(device, non_blocking=True)]
            options = self.regions
            pooled.append(pool_regions(map_NCHW, rois, options.size, aligned=options.aligned))
            found.append(rows)
        back = torch.cat(found).argsort()
        regions = torch.cat(pooled)[back.to(device, non_blocking=True)]
        # a level without boxes has gradient 0 like all others, not none: processes have to go
        # through the same norms, which exchange gradients, whatever boxes they have
        return regions + 0.0 * untouched


def _run(parts: Mapping[str, nn.Module], regions: Tensor, groups: int) -> Tensor:
    vectors: Tensor = parts["projector"](parts["head"](regions, groups), groups)
    return parts["predictor"](vectors, groups) if "predictor" in parts else vectors


def _levels(box_set: BoxSet) -> Tensor:
    if box_set.levels_NK is None:
        raise AssertionError("a pyramid needs the level of every box")
    return box_set.levels_NK
