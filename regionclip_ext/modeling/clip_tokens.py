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
    tokenizer = _tokenizer()
    tokens_NL = torch.zeros(len(texts), context, dtype=torch.int64)
    for row, text in enumerate(texts):
        numbers = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if keep_end and len(numbers) > context:
            numbers[context - 1] = tokenizer.eot_token_id
        numbers = numbers[:context]
        tokens_NL[row, : len(numbers)] = torch.tensor(numbers)
    return tokens_NL


def token_count(text: str) -> int:
    """Tokens of a text before it is cut, with its start and end."""
    return len(_tokenizer().encode(text)) + 2


@cache
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()
