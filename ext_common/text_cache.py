"""Computed text features on disk, keyed by what they were computed from.

Legend: C classes, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ext_common.atomic_file import writing

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
"""Part of every key: a new format never meets old files."""


def cache_file(folder: Path, texts: Sequence[Sequence[str]], encoder_id: str) -> Path:
    """Where the features of these texts belong.

    Args:
        folder: the cache folder.
        texts: for each template, the C complete texts.
        encoder_id: what encodes them.
    """
    content = json.dumps([CACHE_FORMAT, encoder_id, [list(group) for group in texts]])
    return folder / f"text-{hashlib.sha256(content.encode()).hexdigest()[:32]}.npz"


def read_cached(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """Features [C, D], or None where the file is missing or (with a warning) unusable."""
    if not file.is_file():
        return None
    try:
        # a zip entry has a checksum: flipped bits are noticed here
        with np.load(file, allow_pickle=False) as content:
            emb_CD = content["embeddings"]
        if emb_CD.shape != shape or emb_CD.dtype != np.float32:
            raise ValueError(
                f"{emb_CD.dtype} {list(emb_CD.shape)} instead of float32 {list(shape)}"
            )
        if not np.isfinite(emb_CD).all():
            raise ValueError("values that are not finite")
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        logger.warning("Cached text features %s are damaged (%s): computed again.", file, error)
        return None
    return torch.from_numpy(emb_CD)


def write_cached(file: Path, emb_CD: Tensor) -> None:
    """Store features; a folder that cannot be written costs a warning, not the run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file) as stream:
            np.savez(stream, embeddings=emb_CD.numpy().astype(np.float32))
    except OSError as error:
        logger.warning("Text features are not cached in %s: %s", file.parent, error)
