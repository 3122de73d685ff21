"""Embeddings of many concepts: the second start with a cache, or computing them again.

The encoder is a stand-in that looks features up: what is measured is everything around it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import Case, Problem, Results, Variant
from ext_common.vocabulary_prompts import fill
from regionclip_ext.concepts.embedding import embed_concepts
from regionclip_ext.concepts.templates import imagenet_templates


class LookedUp:
    """A text encoder whose features are rows of a table."""

    def __init__(self, dim: int) -> None:
        self.encoder_id, self.dim = f"table-{dim}", dim
        self._table = torch.randn(997, dim, generator=torch.Generator().manual_seed(0))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Features [N, D] by length and first letters of the text."""
        rows = [(31 * len(text) + sum(text[:12].encode())) % 997 for text in texts]
        return self._table[torch.tensor(rows)]


@dataclass(frozen=True)
class _Embedding:
    names: list[str]
    encoder: LookedUp
    folder: tempfile.TemporaryDirectory[str]

    def ours(self) -> Results:
        """As every start does: what is there is read."""
        emb_CD = embed_concepts(
            self.names, self.encoder, imagenet_templates(), cache_dir=Path(self.folder.name)
        )
        return {"embeddings": emb_CD}

    def naive(self) -> Results:
        """Name by name, all prompts of one at a time."""
        templates = imagenet_templates()
        rows = [
            self.encoder.encode([fill(template, name) for template in templates]).mean(dim=0)
            for name in self.names
        ]
        return {"embeddings": torch.stack(rows)}


def build(device: torch.device, *, count: int, dim: int = 1024) -> Problem:
    """The first start fills the cache here and is not measured."""
    names = [f"concept number {n}" for n in range(count)]
    folder = tempfile.TemporaryDirectory(prefix="text-embedding-")
    embedding = _Embedding(names, LookedUp(dim), folder)
    embedding.ours()
    return Problem({"ours": embedding.ours, "naive": embedding.naive})


CASE = Case(
    name="text_embedding",
    what="22,000 names x 81 prompts: second start from the cache, or computed name by name",
    variants=(Variant("22000x81", partial(build, count=22000), target=5),),
    tiny=Variant("tiny", partial(build, count=5, dim=8)),
    tolerance=1e-5,
    most_repeats=3,
)
