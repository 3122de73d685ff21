"""Embedding files in the authors' format: one bare tensor [C, D] in a ``.pth`` file.

``Vocabulary.from_file`` reads them.

Legend: C concepts, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ext_common.errors import ConfigError
from ext_common.images import printable
from ext_common.vocabulary import Vocabulary
from ext_common.weights_io import save_tensors_atomic
from regionclip_ext.concepts.concept_list import Concept, write_concepts

SUFFIXES = (".pth", ".npz")


def write_embeddings(
    path: str | Path, names: Sequence[str], emb_CD: Tensor, encoder_id: str
) -> list[Path]:
    """Write embeddings.

    A ``.pth`` file is the authors': a float32 tensor and nothing else, ``[D]`` for a single concept;
    the names go into a ``.txt`` file beside it. A ``.npz`` file holds both and what made them.

    Args:
        path: its ending says which.
        names: C concepts.
        emb_CD: un-normalised.
        encoder_id: of the text encoder.

    Returns:
        The files that were written.

    Raises:
        ConfigError: another ending.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"cannot write {path.suffix or 'a file without ending'}",
            where=printable(path),
            fix=f"one of {', '.join(SUFFIXES)}",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        Vocabulary.from_names(list(names)).with_embeddings(emb_CD, encoder_id).save(path)
        return [path]
    emb_CD = emb_CD.detach().cpu().float().contiguous()
    save_tensors_atomic(emb_CD[0].clone() if len(emb_CD) == 1 else emb_CD.clone(), path)
    listed = path.with_suffix(".txt")
    write_concepts(listed, [Concept(name) for name in names])
    return [path, listed]
