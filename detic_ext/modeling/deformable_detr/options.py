"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from ext_common.errors import ConfigError

NORM_GROUPS = 32
"""Groups of the normalisation after each input projection."""


@dataclass(frozen=True)
class TransformerOptions:
    """Size and kind of the transformer.

    Args:
        width: channels of tokens and queries; a multiple of 32, at least 64, and of ``heads``.
        heads: attention heads.
        levels: feature maps that are attended to; maps beyond the backbone's are made by
            convolutions of stride 2.
        points: sampled points per head and level.
        feed_forward: hidden channels of the feed-forward parts.
        encoder_layers: at least 1.
        decoder_layers: at least 1.
        dropout: probability.
        queries: detections looked for in an image.
        two_stage: queries start from the best encoder tokens instead of learned vectors.
        refine: every decoder layer starts from the boxes of the layer before.

    Raises:
        ConfigError: numbers that make no network.
    """

    width: int = 256
    heads: int = 8
    levels: int = 4
    points: int = 4
    feed_forward: int = 1024
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    queries: int = 300
    two_stage: bool = True
    refine: bool = True

    def __post_init__(self) -> None:
        counts = {
            "NHEADS": self.heads,
            "NUM_FEATURE_LEVELS": self.levels,
            "DIM_FEEDFORWARD": self.feed_forward,
            "ENC_LAYERS": self.encoder_layers,
            "DEC_LAYERS": self.decoder_layers,
            "NUM_OBJECT_QUERIES": self.queries,
        }
        for key, value in counts.items():
            if value < 1:
                raise ConfigError(f"{value} is less than 1", where=f"MODEL.DETR.{key}")
        # a group of one channel cannot be normalised on a map of one cell
        if self.width <= NORM_GROUPS or self.width % NORM_GROUPS or self.width % self.heads:
            raise ConfigError(
                f"HIDDEN_DIM {self.width} with NHEADS {self.heads}",
                where="MODEL.DETR",
                fix=f"HIDDEN_DIM must be a multiple of {NORM_GROUPS}, above it, and one of NHEADS",
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TransformerOptions:
        """Read ``MODEL.DETR``."""
        node = cfg.MODEL.DETR
        return cls(
            width=node.HIDDEN_DIM,
            heads=node.NHEADS,
            levels=node.NUM_FEATURE_LEVELS,
            feed_forward=node.DIM_FEEDFORWARD,
            encoder_layers=node.ENC_LAYERS,
            decoder_layers=node.DEC_LAYERS,
            dropout=node.DROPOUT,
            queries=node.NUM_OBJECT_QUERIES,
            two_stage=node.TWO_STAGE,
            refine=node.WITH_BOX_REFINE,
        )
