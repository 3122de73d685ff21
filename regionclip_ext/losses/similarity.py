"""Cosine similarities divided by a temperature, in single precision whatever autocast is around.

Shapes: N rows, C columns, D embedding width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ext_common.modeling.full_precision import full_precision


def unit_rows(feats_ND: Tensor) -> Tensor:
    """Rows of length 1, at least float32; a row of zeros stays zero."""
    return F.normalize(feats_ND.float() if feats_ND.dtype.itemsize < 4 else feats_ND, dim=1)


def cosine_logits(feats_ND: Tensor, texts_CD: Tensor, temperature: float) -> Tensor:
    """Logits [N, C]: the cosine of every row with every text, divided by ``temperature``.

    Half precision would round a cosine by 0.004, which the usual temperature of 0.01 turns into
    0.4 of a logit; the product is therefore never autocast.
    """
    with full_precision(feats_ND):
        return unit_rows(feats_ND) @ unit_rows(texts_CD).T / temperature
