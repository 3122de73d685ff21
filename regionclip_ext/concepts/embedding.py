"""Embeddings of concepts: many names times many prompts, in pieces that are kept.

Legend: C concepts, T templates, D embedding width.
Source: RegionCLIP specification 1.3 to 1.5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ext_common.text_cache import cache_file, read_cached, write_cached
from ext_common.text_encoder import TextEncoder
from ext_common.vocabulary_prompts import fill
from regionclip_ext.concepts.templates import checked_templates

logger = logging.getLogger(__name__)

MEANS = ("raw", "normalized")
"""``raw``: mean of un-normalised features, as the authors'. ``normalized``: mean of unit features,
as CLIP's zero-shot classifiers."""

CHUNK = 512
"""Names of one piece: with 81 templates, about a minute of a GPU's work is lost at most."""


def embed_concepts(
    names: Sequence[str],
    encoder: TextEncoder,
    templates: Sequence[str],
    *,
    mean: str = "raw",
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Mean features of every name over all templates, un-normalised afterwards.

    Pieces of :data:`CHUNK` names are cached by their content (texts, encoder, kind of mean): a run
    that was stopped goes on with the next piece, and a finished one is read in seconds. The whole is
    cached besides.

    Args:
        names: concepts in order.
        encoder: called only for what the cache does not hold.
        templates: with one ``{}`` each.
        mean: one of :data:`MEANS`.
        cache_dir: folder; None or empty = keep nothing.
        progress: told the number of names done.

    Returns:
        float32 [C, D], on the CPU.

    Raises:
        VocabularyError: a template without ``{}``.
    """
    templates = checked_templates(templates)
    if mean not in MEANS:
        raise AssertionError(f"unknown mean {mean}")
    folder = Path(cache_dir).expanduser() if cache_dir else None
    key = f"{encoder.encoder_id}/{mean}"
    # the whole is known by names and templates: writing out 1.8 million texts takes seconds
    whole = None if folder is None else cache_file(folder, [list(names), list(templates)], key)
    if (
        whole is not None
        and (known_CD := read_cached(whole, (len(names), encoder.dim))) is not None
    ):
        return known_CD
    pieces = []
    for start in range(0, len(names), CHUNK):
        part = list(names[start : start + CHUNK])
        file = None if folder is None else cache_file(folder, [part, list(templates)], key)
        piece_CD = None if file is None else read_cached(file, (len(part), encoder.dim))
        if piece_CD is None:
            piece_CD = _encode(part, encoder, templates, mean)
            if file is not None:
                write_cached(file, piece_CD)
        pieces.append(piece_CD)
        if progress is not None:
            progress(start + len(part))
    emb_CD = torch.cat([torch.zeros(0, encoder.dim), *pieces])
    if whole is not None and len(pieces) > 1:
        write_cached(whole, emb_CD)
    return emb_CD


def _encode(
    names: Sequence[str], encoder: TextEncoder, templates: Sequence[str], mean: str
) -> Tensor:
    # one call: the encoder fills its batches, whatever the number of templates
    texts = [fill(template, name) for name in names for template in templates]
    feats_CTD = encoder.encode(texts).view(len(names), len(templates), -1)
    if mean == "normalized":
        feats_CTD = F.normalize(feats_CTD, dim=2)
    return feats_CTD.mean(dim=1)
