"""CLIP's byte-pair tokens (specification 1.4), by open_clip's implementation.

Legend: N texts, L tokens of a text (77).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

CONTEXT = 77


def tokenize(texts: Sequence[str], *, context: int = CONTEXT, keep_end: bool = False) -> Tensor:
    """Token numbers ``[N, L]``, int64: start, words, end, zeros.

    Args:
        texts: any; cleaned and lower-cased as CLIP does.
        context: L.
        keep_end: of a text that is too long, the last token becomes the end of text, as OpenAI's
            own code has it. The published models were trained without: the text is cut, and the
            feature is read at the largest token left (spec 1.4, pitfall 11.12).
    """
    rows = [tokenize_counted(text, context=context, keep_end=keep_end)[0] for text in texts]
    return torch.stack(rows) if rows else torch.zeros(0, context, dtype=torch.int64)


def tokenize_counted(
    text: str, *, context: int = CONTEXT, keep_end: bool = False
) -> tuple[Tensor, int]:
    """One text as a row of :func:`tokenize`, and how many tokens it had before it was cut.

    Args:
        text: any.
        context: L.
        keep_end: see :func:`tokenize`.

    Returns:
        ``[L]``, int64, and the count with start and end.
    """
    tokenizer = _tokenizer()
    numbers = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
    count = len(numbers)
    if keep_end and count > context:
        numbers[context - 1] = tokenizer.eot_token_id
    tokens_L = torch.zeros(context, dtype=torch.int64)
    tokens_L[:count] = torch.tensor(numbers[:context])
    return tokens_L, count


@cache
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()
