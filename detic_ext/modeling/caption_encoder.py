"""Captions as text features: tokens, a frozen text tower, and its weights (WITH_CAPTION).

Shapes: B texts, L tokens, D embedding width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ext_common.clip_text_encoder import text_tensors
from ext_common.clip_weights import find_clip_weights, model_config
from ext_common.errors import ConfigError, WeightsError
from ext_common.modeling.text_tower import TextTower, TextTowerShape
from ext_common.text_encoder import HASH_ENCODER, HashTextEncoder
from ext_common.weights_io import load_tensors

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """The part of open_clip's tokenizer that is used here."""

    sot_token_id: int
    eot_token_id: int

    def encode(self, text: str) -> list[int]:
        """Tokens of a text without its marks for start and end."""
        ...


class ClipCaptionEncoder(TextTower):
    """CLIP's text tower, frozen, for captions of any length.

    Args:
        shape: sizes of the tower.
        tokenizer: None = CLIP's, made when the first caption is read.
        generator: draws the part of long captions; None = torch's global one.
    """

    def __init__(
        self,
        shape: TextTowerShape | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(shape)
        # what says that nobody has given the tower its weights
        nn.init.zeros_(self.text_projection)
        self._tokenizer = tokenizer
        self._generator = generator
        self._has_weights = False

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.shape.embed_dim

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers [B, L], int64 on the CPU, zeros behind the end.

        Of a text with more than L tokens, its marks for start and end included, a random run of L
        is read (specification section 5).
        """
        if self._tokenizer is None:
            import open_clip

            self._tokenizer = open_clip.SimpleTokenizer()
        limit = self.shape.context
        tokens_BL = torch.zeros(len(texts), limit, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens = [
                self._tokenizer.sot_token_id,
                *self._tokenizer.encode(text),
                self._tokenizer.eot_token_id,
            ]
            if len(tokens) > limit:
                choices = len(tokens) - limit + 1
                start = int(torch.randint(choices, (), generator=self._generator))
                tokens = tokens[start : start + limit]
            tokens_BL[row, : len(tokens)] = torch.tensor(tokens)
        return tokens_BL

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Un-normalised features [B, D], float32, on the tower's device.

        Raises:
            WeightsError: nobody has given the tower its weights.
        """
        self._require_weights()
        device = self.text_projection.device
        tokens_BL = self.tokenize(texts)
        # tokens look back only, so what follows the longest text changes nothing
        longest = int(tokens_BL.count_nonzero(dim=1).max())
        features_BD: Tensor = self(tokens_BL[:, :longest].to(device))
        return features_BD

    def _require_weights(self) -> None:
        """Weights come from CLIP's file or from the checkpoint; asked once."""
        if self._has_weights:
            return
        if not bool(self.text_projection.any()):
            raise WeightsError(
                "the text encoder of captions has no weights: neither CLIP's file was found nor "
                "does MODEL.WEIGHTS have text_encoder.*",
                where="MODEL.TEXT_ENCODER.WEIGHTS",
                fix="give OpenAI's .pt or an open_clip file",
            )
        self._has_weights = True


class HashCaptionEncoder(nn.Module):
    """Captions through the encoder without weights, for demos and tests.

    Args:
        dim: width D.
    """

    place: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = HashTextEncoder(dim)
        self.register_buffer("place", torch.zeros(()), persistent=False)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.encoder.dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Features [B, D], float32, on the model's device."""
        return self.encoder.encode(texts).to(self.place.device)


CaptionEncoder = ClipCaptionEncoder | HashCaptionEncoder


def build_caption_encoder(cfg: CfgNode) -> CaptionEncoder:
    """The text tower of ``MODEL.TEXT_ENCODER``, which class names go through as well.

    Weights that are not found are not an error yet: the checkpoint may have them, and detection
    does without.

    Raises:
        ConfigError: an unknown model, or one of another width than the classifier.
        WeightsError: a file that is no text tower of this model.
    """
    node = cfg.MODEL.TEXT_ENCODER
    encoder: CaptionEncoder
    if node.NAME == HASH_ENCODER:
        encoder = HashCaptionEncoder(node.DIM)
    else:
        encoder = ClipCaptionEncoder(text_tower_shape(model_config(node.NAME), node.NAME))
    width = cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM
    if encoder.dim != width:
        raise ConfigError(
            f"{node.NAME} makes text features of width {encoder.dim}, "
            f"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_DIM is {width}",
            where="MODEL.TEXT_ENCODER.NAME",
            fix="captions and class names need features of the same width",
        )
    if isinstance(encoder, ClipCaptionEncoder):
        try:
            path = find_clip_weights(node.NAME, node.WEIGHTS, allow_download=node.ALLOW_DOWNLOAD)
        except WeightsError as error:
            logger.warning("Captions: %s. MODEL.WEIGHTS must have the text encoder.", error)
            return encoder
        load_text_tower(encoder, dict(text_tensors(load_tensors(path))), str(path))
    return encoder


def text_tower_shape(config: dict[str, Any], name: str) -> TextTowerShape:
    """Sizes from an open_clip configuration.

    Raises:
        ConfigError: a text tower that is not one of CLIP's first kind.
    """
    text = config["text_cfg"]
    unusual = sorted(set(text) - {"context_length", "vocab_size", "width", "heads", "layers"})
    if unusual or config.get("custom_text"):
        raise ConfigError(
            f"the text tower of {name} is not built like CLIP's ({', '.join(unusual)})",
            where="MODEL.TEXT_ENCODER.NAME",
            fix="ViT-B-32-quickgelu is what the published models use",
        )
    return TextTowerShape(
        embed_dim=config["embed_dim"],
        width=text["width"],
        heads=text["heads"],
        layers=text["layers"],
        context=text.get("context_length", 77),
        vocabulary=text.get("vocab_size", 49408),
        quick_gelu=bool(config.get("quick_gelu")),
    )


def load_text_tower(tower: TextTower, tensors: dict[str, Tensor], source: str) -> None:
    """Copy the weights of a CLIP file into a text tower.

    Args:
        tower: written to.
        tensors: of a CLIP file; its image tower is not needed.
        source: for messages.

    Raises:
        WeightsError: missing or differently shaped tensors.
    """
    own = tower.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if name not in tensors or tensors[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of {len(own)} text weights are missing or of another shape: "
            f"{', '.join(wrong[:3])}",
            where=source,
            fix="MODEL.TEXT_ENCODER.NAME and WEIGHTS must belong together",
        )
    tower.load_state_dict({name: tensors[name].float() for name in own})
