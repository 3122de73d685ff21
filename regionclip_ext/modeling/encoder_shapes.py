"""Sizes of CLIP's ResNet encoders (Radford et al. 2021; specification 1.6 and 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from ext_common.errors import ConfigError

CUSTOM = "custom"
STRIDE = 32  # pixels of the input per token of the attention pool


@dataclass(frozen=True)
class ClipResNetShape:
    """An image encoder and the text encoder it was trained with.

    Attributes:
        layers: bottleneck blocks of the four stages.
        width: channels behind the stem; the last stage has 32 times as many.
        heads: attention heads of the pool.
        embed_dim: D, width of the joint embedding.
        resolution: side of the square training images, pixels.
        text_width: width of the text transformer.
    """

    layers: tuple[int, int, int, int]
    width: int
    heads: int
    embed_dim: int
    resolution: int
    text_width: int = 512

    @property
    def pool_side(self) -> int:
        """S: the attention pool takes S x S maps, and no others."""
        return self.resolution // STRIDE

    @property
    def roi_side(self) -> int:
        """Side of the ROI grid before the last stage, which halves it."""
        return 2 * self.pool_side


SHAPES = {
    "RN50": ClipResNetShape((3, 4, 6, 3), 64, 32, 1024, 224),
    "RN101": ClipResNetShape((3, 4, 23, 3), 64, 32, 512, 224),
    "RN50x4": ClipResNetShape((4, 6, 10, 6), 80, 40, 640, 288, 640),
    "RN50x16": ClipResNetShape((6, 8, 18, 8), 96, 48, 768, 384, 768),
}
"""CLIP's published ResNets but RN50x64."""

_BY_DEPTH = {50: "RN50", 101: "RN101", 200: "RN50x4"}


def encoder_shape(cfg: CfgNode, *, teacher: bool = False) -> ClipResNetShape:
    """The image encoder that a configuration asks for.

    Args:
        cfg: complete configuration.
        teacher: the pretraining teacher instead of the model's own encoder.

    Raises:
        ConfigError: an unknown name or depth flag.
    """
    clip = cfg.MODEL.CLIP
    prefix = "TEACHER_" if teacher else ""
    name = clip[f"{prefix}IMAGE_ENCODER"]
    if name == CUSTOM:
        return _custom(clip[f"{prefix}CUSTOM_ENCODER"], f"MODEL.CLIP.{prefix}CUSTOM_ENCODER")
    if name:
        if name not in SHAPES:
            vit = "ViT" in name
            raise ConfigError(
                f"{name} is not supported as image encoder"
                + (": regions need the feature map of a ResNet" if vit else ""),
                where=f"MODEL.CLIP.{prefix}IMAGE_ENCODER",
                fix=f"one of {', '.join(SHAPES)}, {CUSTOM}",
            )
        return SHAPES[name]
    depth = clip.TEACHER_RESNETS_DEPTH if teacher else cfg.MODEL.RESNETS.DEPTH
    if depth not in _BY_DEPTH:
        raise ConfigError(
            f"no CLIP ResNet has the depth flag {depth}",
            where="MODEL.CLIP.TEACHER_RESNETS_DEPTH" if teacher else "MODEL.RESNETS.DEPTH",
            fix=f"50, 101, or 200 for RN50x4; or set MODEL.CLIP.{prefix}IMAGE_ENCODER",
        )
    return SHAPES[_BY_DEPTH[depth]]


def _custom(node: CfgNode, where: str) -> ClipResNetShape:
    layers = tuple(int(blocks) for blocks in node.LAYERS)
    sizes = (node.WIDTH, node.HEADS, node.EMBED_DIM, *layers)
    if len(layers) != 4 or min(sizes) < 1 or node.WIDTH * STRIDE % node.HEADS:
        raise ConfigError(
            f"an encoder of width {node.WIDTH}, {node.HEADS} heads and {list(layers)} blocks",
            where=where,
            fix="four numbers of blocks, and heads that divide 32 times the width",
        )
    if node.WIDTH % 2 or node.RESOLUTION % STRIDE or node.RESOLUTION < STRIDE:
        raise ConfigError(
            f"width {node.WIDTH}, resolution {node.RESOLUTION}",
            where=where,
            fix="an even width, and a resolution that 32 divides",
        )
    return ClipResNetShape(
        (layers[0], layers[1], layers[2], layers[3]),
        node.WIDTH,
        node.HEADS,
        node.EMBED_DIM,
        node.RESOLUTION,
    )
