"""Backbone, input projections, transformer and heads.

Shapes: B images, D width, Q queries, K decoder layers, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from detic_ext.losses.detr_data import DetrPredictions
from detic_ext.modeling.deformable_detr.geometry import level_geometry
from detic_ext.modeling.deformable_detr.options import NORM_GROUPS, TransformerOptions
from detic_ext.modeling.deformable_detr.transformer import DeformableTransformer
from ext_common.errors import ConfigError


class FeatureMaps(nn.Module):
    """All maps of a backbone, the finest first.

    Args:
        backbone: gives at least one map.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        self.backbone = backbone
        self.names = sorted(shapes, key=lambda name: shapes[name].stride)
        self.strides = [shapes[name].stride for name in self.names]
        self.channels = [shapes[name].channels for name in self.names]

    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        """Maps by ascending stride."""
        features = self.backbone(images_NCHW)
        return [features[name] for name in self.names]


class DetrNetwork(nn.Module):
    """Images to predictions.

    Args:
        backbone: its maps are the first levels; further ones are made from the last.
        num_classes: C.
        options: settings of the transformer.

    Raises:
        ConfigError: fewer levels than the backbone has maps.
    """

    def __init__(
        self, *, backbone: Backbone, num_classes: int, options: TransformerOptions
    ) -> None:
        super().__init__()
        # in a list, as in the public models ("backbone.0.backbone.res2...")
        self.backbone = nn.ModuleList([FeatureMaps(backbone)])
        maps = self._maps
        if options.levels < len(maps.names):
            raise ConfigError(
                f"{options.levels} levels for the maps {', '.join(maps.names)} of the backbone",
                where="MODEL.DETR.NUM_FEATURE_LEVELS",
                fix=f"set it to {len(maps.names)} or more, or give fewer OUT_FEATURES",
            )
        self.strides = list(maps.strides)
        projections = [_projection(channels, options.width, 1) for channels in maps.channels]
        for level in range(len(maps.names), options.levels):
            first = level == len(maps.names)
            projections.append(
                _projection(maps.channels[-1] if first else options.width, options.width, 3)
            )
            self.strides.append(self.strides[-1] * 2)
        self.input_proj = nn.ModuleList(projections)
        self.transformer = DeformableTransformer(options, num_classes)
        self.class_embed = self.transformer.decoder.class_embed
        self.bbox_embed = self.transformer.decoder.bbox_embed
        self.query_embed = (
            None if options.two_stage else nn.Embedding(options.queries, 2 * options.width)
        )

    @property
    def _maps(self) -> FeatureMaps:
        maps = self.backbone[0]
        assert isinstance(maps, FeatureMaps)
        return maps

    @property
    def size_divisibility(self) -> int:
        """Sides of the padded batch are multiples of this."""
        divisibility: int = self._maps.backbone.size_divisibility
        return divisibility

    def forward(
        self, images_NCHW: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> DetrPredictions:
        """Predict.

        Args:
            images_NCHW: normalised and padded.
            image_sizes: (height, width) of each image without padding, pixels.

        Returns:
            Predictions of all decoder layers in training, of the last one otherwise.
        """
        maps = self._maps(images_NCHW)
        levels: list[Tensor] = []
        for index, projection in enumerate(self.input_proj):
            first_extra = index == len(maps)
            source = maps[index] if index < len(maps) else maps[-1] if first_extra else levels[-1]
            levels.append(projection(source))
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        geometry = level_geometry(image_sizes, shapes, self.strides, images_NCHW.device)
        learned = None if self.query_embed is None else self.query_embed.weight
        decoded, proposals = self.transformer(levels, geometry, learned)
        heads = list(self.class_embed)[: len(decoded)]
        said = list(zip(decoded, heads, strict=True))
        if not self.training:
            said = said[-1:]
        return DetrPredictions(
            torch.stack([head(layer.states_BQD).float() for layer, head in said]),
            torch.stack([layer.boxes_BQ4 for layer, _ in said]),
            proposals,
        )


def _projection(channels: int, width: int, kernel: int) -> nn.Sequential:
    """To the width of the transformer; a kernel of 3 halves the resolution."""
    stride = 1 if kernel == 1 else 2
    convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width))
