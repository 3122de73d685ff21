"""What every vocabulary is held to: names that can be told apart, rows that can be used.

Legend: C classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ext_common.errors import VocabularyError


def normalized_name(name: str) -> str:
    """A class name without blanks at its ends and with single blanks inside."""
    return " ".join(name.split())


def comparison_key(name: str) -> str:
    """What two names have in common when they differ in case and blanks only."""
    return normalized_name(name).casefold()


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names, normalised; VocabularyError for none, an empty one, or two that are the same."""
    if isinstance(names, str):
        raise VocabularyError(
            f"names are the single string {names!r}", fix="give a list, or use Vocabulary.parse"
        )
    if len(names) == 0:
        raise VocabularyError("the vocabulary is empty", fix="give at least one class name")
    checked: list[str] = []
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise VocabularyError(f"name {row} is {name!r}, not text")
        plain = normalized_name(name)
        if not plain:
            raise VocabularyError(f"name {row} of {len(names)} is empty", fix="name it or drop it")
        first = seen.setdefault(comparison_key(plain), row)
        if first != row:
            raise VocabularyError(
                f"names {first} and {row} are the same: {names[first]!r} and {name!r}",
                fix="drop one, or tell them apart, as in 'crane (bird)', 'crane (machine)'",
            )
        checked.append(plain)
    return tuple(checked)


def checked_prompts(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """Prompts as given; VocabularyError unless there is one text for each of ``count`` names."""
    if isinstance(prompts, str) or len(prompts) != count:
        found = repr(prompts) if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise VocabularyError(f"{found} for {count} names", fix="give one prompt per name")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise VocabularyError(f"prompt {row} is {prompt!r}", fix="give a text for every name")
    return tuple(prompts)


def checked_embeddings(embeddings_CD: Any, names: tuple[str, ...]) -> Tensor:
    """A float32 CPU copy [C, D]; VocabularyError for another shape, NaN, infinity or a zero row."""
    expected = f"expected [{len(names)}, D], one row per name"
    if not isinstance(embeddings_CD, Tensor) or not embeddings_CD.is_floating_point():
        kind = getattr(embeddings_CD, "dtype", type(embeddings_CD).__name__)
        raise VocabularyError(f"embeddings are {kind}, not floating-point numbers; {expected}")
    shape = list(embeddings_CD.shape)
    if len(shape) != 2 or shape[0] != len(names) or shape[1] == 0:
        turned = len(shape) == 2 and shape[1] == len(names)
        raise VocabularyError(
            f"embeddings of shape {shape} for {len(names)} names; {expected}",
            fix="transpose the array" if turned else "names and rows must be in the same order",
        )
    emb_CD = embeddings_CD.detach().to("cpu", torch.float32, copy=True).contiguous()
    for bad_C, what in (
        (~torch.isfinite(emb_CD).all(dim=1), "not finite (NaN or infinite)"),
        ((emb_CD == 0).all(dim=1), "all zero"),
    ):
        rows = torch.nonzero(bad_C).flatten().tolist()
        if rows:
            some = ", ".join(f"{row} ({names[row]})" for row in rows[:3])
            raise VocabularyError(
                f"embeddings of {len(rows)} of {len(names)} names are {what}: rows {some}"
                + (", ..." if len(rows) > 3 else ""),
                fix="compute these rows again",
            )
    return emb_CD
