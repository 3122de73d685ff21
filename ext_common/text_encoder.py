"""Text encoders: prompts in, text features out; and vocabularies turned into embeddings.

Legend: N texts, W words, C classes, D embedding width.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ext_common.clip_text_encoder import ClipTextEncoder, holds_text_encoder
from ext_common.errors import ConfigError, VocabularyError
from ext_common.text_cache import cache_file, read_cached, write_cached
from ext_common.vocabulary import Vocabulary
from ext_common.vocabulary_prompts import fill, lvis_name

__all__ = [
    "ClipTextEncoder",
    "HashTextEncoder",
    "NameCleaningEncoder",
    "TextEncoder",
    "build_text_encoder",
    "embed_vocabulary",
    "load_vocabulary",
    "text_encoder_from_config",
]

logger = logging.getLogger(__name__)

HASH_ENCODER = "hash"
"""``MODEL.TEXT_ENCODER.NAME`` of :class:`HashTextEncoder`."""

_HASH_VERSION = 1
_HASH_CHUNK = 2048  # texts at once: bounds the memory for word vectors
_WORD = re.compile(r"[^\W_]+")


class TextEncoder(Protocol):
    """What turns texts into features."""

    @property
    def encoder_id(self) -> str:
        """Names the encoder and its weights; equal ids mean interchangeable features."""

    @property
    def dim(self) -> int:
        """Width D of the features."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D], float32 on the CPU, un-normalised."""


class HashTextEncoder:
    """Text features without weights, for demos and tests.

    Each lower-cased word has one unit vector, drawn from a Gaussian whose random bits are the
    SHAKE-256 digest of the word; a text is the normalised sum of its words' vectors. So "red square"
    lies between "red disc" and "blue square", and nothing more: no synonyms, no word order, no
    grammar. Words that differ are nearly orthogonal (cosine about ``1 / sqrt(dim)``). The same on
    every platform and in every process.

    Args:
        dim: width D of the features, at least 1; small widths make unrelated words look alike.

    Raises:
        ConfigError: ``dim`` below 1.
    """

    def __init__(self, dim: int = 512) -> None:
        if dim < 1:
            raise ConfigError(f"width {dim}", where="MODEL.TEXT_ENCODER.DIM", fix="give at least 1")
        self.dim = dim
        self.encoder_id = f"hash-v{_HASH_VERSION}-{dim}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit-length features [N, D], float32 on the CPU."""
        chunks = [
            self._encode_chunk(texts[start : start + _HASH_CHUNK])
            for start in range(0, len(texts), _HASH_CHUNK)
        ]
        return torch.from_numpy(np.concatenate([np.zeros((0, self.dim), np.float32), *chunks]))

    def _encode_chunk(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        rows: dict[str, int] = {}
        # a text of signs only is one word: it must not become a row of zeros
        words = [_WORD.findall(text.lower()) or [text.strip().lower()] for text in texts]
        chosen = [[rows.setdefault(word, len(rows)) for word in group] for group in words]
        vectors_WD = self._word_vectors(list(rows))
        sums_ND = np.stack([vectors_WD[group].sum(axis=0) for group in chosen])
        norms_N1 = np.linalg.norm(sums_ND, axis=1, keepdims=True)
        return (sums_ND / np.maximum(norms_N1, 1e-12)).astype(np.float32)

    def _word_vectors(self, words: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Unit vectors [W, D] of W words."""
        pairs = (self.dim + 1) // 2
        bits = b"".join(
            hashlib.shake_256(f"{_HASH_VERSION}:{word}".encode()).digest(8 * pairs)
            for word in words
        )
        # two 32-bit numbers in (0, 1] make two Gaussian ones (Box-Muller)
        uniform = (np.frombuffer(bits, "<u4").reshape(len(words), pairs, 2) + 1.0) / 2.0**32
        radius = np.sqrt(-2 * np.log(uniform[:, :, 0]))
        angle = 2 * np.pi * uniform[:, :, 1]
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
        vectors_WD = normal.reshape(len(words), -1)[:, : self.dim]
        unit_WD: np.ndarray[Any, np.dtype[np.float64]] = vectors_WD / np.linalg.norm(
            vectors_WD, axis=1, keepdims=True
        )
        return unit_WD


@dataclass(frozen=True)
class NameCleaningEncoder:
    """An encoder that wants class names cleaned before templates are filled with them.

    Texts are encoded as they are: it is :func:`embed_vocabulary` that looks for this class.

    Args:
        encoder: encodes; the features are its own, so the id is, too.
    """

    encoder: TextEncoder

    @property
    def encoder_id(self) -> str:
        """That of ``encoder``."""
        return self.encoder.encoder_id

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.encoder.dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D], float32 on the CPU, un-normalised."""
        return self.encoder.encode(texts)


def build_text_encoder(node: Any, device: str = "cpu") -> TextEncoder:
    """The text encoder of a ``MODEL.TEXT_ENCODER`` block.

    Args:
        node: keys NAME, WEIGHTS, DIM, ALLOW_DOWNLOAD (see :func:`ext_common.config.add_common_config`).
        device: where a CLIP model runs.

    Raises:
        WeightsError: CLIP weights that are not there.
        ConfigError: an unknown model.
    """
    if node.NAME == HASH_ENCODER:
        return HashTextEncoder(node.DIM)
    return ClipTextEncoder(
        node.NAME, node.WEIGHTS, allow_download=node.ALLOW_DOWNLOAD, device=device
    )


def text_encoder_from_config(cfg: Any) -> TextEncoder:
    """The text encoder of a whole configuration, on ``MODEL.DEVICE``.

    It is the one of ``MODEL.TEXT_ENCODER``; without WEIGHTS there, the one in ``MODEL.WEIGHTS`` where
    that is a RegionCLIP checkpoint with ``lang_encoder.*``. With CLEAN_NAMES it comes as a
    :class:`NameCleaningEncoder`.

    Raises:
        WeightsError, ConfigError: as :func:`build_text_encoder`.
    """
    encoder = _configured_encoder(cfg)
    return NameCleaningEncoder(encoder) if cfg.MODEL.TEXT_ENCODER.CLEAN_NAMES else encoder


def _configured_encoder(cfg: Any) -> TextEncoder:
    node = cfg.MODEL.TEXT_ENCODER
    if node.NAME != HASH_ENCODER and not node.WEIGHTS and holds_text_encoder(cfg.MODEL.WEIGHTS):
        logger.info("The text encoder is taken from %s", cfg.MODEL.WEIGHTS)
        return ClipTextEncoder(node.NAME, cfg.MODEL.WEIGHTS, device=cfg.MODEL.DEVICE)
    return build_text_encoder(node, cfg.MODEL.DEVICE)


def embed_vocabulary(
    vocabulary: Vocabulary,
    encoder: TextEncoder,
    templates: Sequence[str] = ("a {}",),
    cache_dir: str | Path | None = None,
) -> Vocabulary:
    """Give a vocabulary its text features.

    A class's own prompt is encoded as it is. Without prompts, each template is filled with the
    name; several templates give the mean of their raw features (detic spec section 10: ``a X``,
    features not normalised). A :class:`NameCleaningEncoder` sees the names without ``, ( )`` and
    with blanks for ``+`` and ``_`` (RegionCLIP specification 1.2); the vocabulary keeps its names.

    Args:
        vocabulary: its embeddings, if any, are replaced.
        encoder: called only for what the cache does not hold.
        templates: texts with one ``{}`` each.
        cache_dir: folder for computed features, keyed by content (texts, templates, encoder);
            None or empty for no cache. A folder that cannot be written is only warned about.

    Raises:
        VocabularyError: a template without ``{}``, or features that are not [C, D] finite values.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise VocabularyError(
                f"template {template!r} must hold {{}} once",
                where="MODEL.TEXT_ENCODER.TEMPLATES",
                fix="write it like 'a photo of a {}'",
            )
    if not templates and vocabulary.prompts is None:
        raise VocabularyError(
            "no template", where="MODEL.TEXT_ENCODER.TEMPLATES", fix="'{}' will do"
        )
    texts = _texts(vocabulary, templates, clean=isinstance(encoder, NameCleaningEncoder))
    file = None
    if cache_dir:
        file = cache_file(Path(cache_dir).expanduser(), texts, encoder.encoder_id)
        cached_CD = read_cached(file, (len(vocabulary), encoder.dim))
        if cached_CD is not None:
            return vocabulary.with_embeddings(cached_CD, encoder.encoder_id)
    emb_CD = torch.stack([encoder.encode(group) for group in texts]).mean(dim=0)
    embedded = vocabulary.with_embeddings(emb_CD, encoder.encoder_id)
    if file is not None:
        write_cached(file, emb_CD)
    return embedded


def load_vocabulary(cfg: Any) -> Vocabulary | None:
    """The vocabulary that a configuration asks for, with embeddings.

    ``MODEL.VOCABULARY`` is read by :meth:`Vocabulary.parse`; names are embedded as
    ``MODEL.TEXT_ENCODER`` says (:func:`text_encoder_from_config`). A file that brings embeddings needs no encoder.

    Returns:
        None where ``MODEL.VOCABULARY`` is empty.

    Raises:
        VocabularyError, WeightsError, ConfigError: as the parts above.
    """
    if not cfg.MODEL.VOCABULARY:
        return None
    vocabulary = Vocabulary.parse(cfg.MODEL.VOCABULARY)
    if vocabulary.embeddings_CD is not None:
        return vocabulary
    node = cfg.MODEL.TEXT_ENCODER
    encoder = text_encoder_from_config(cfg)
    return embed_vocabulary(vocabulary, encoder, node.TEMPLATES, node.CACHE_DIR)


def _texts(vocabulary: Vocabulary, templates: Sequence[str], *, clean: bool) -> list[list[str]]:
    """One list of C texts per template."""
    if vocabulary.prompts is not None:
        return [list(vocabulary.prompts)]
    if clean:
        names = [lvis_name(name) for name in vocabulary.names]
        return [[fill(template, name) for name in names] for template in templates]
    return [[template.replace("{}", name) for name in vocabulary.names] for template in templates]
