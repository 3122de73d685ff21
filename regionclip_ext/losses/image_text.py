"""Image-text contrast between whole images and their captions (CLIP's loss).

Shapes: B images of this process, N of all, D embedding width.
Source: RegionCLIP specification 3.3, loss_img_txt_level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ext_common.errors import DatasetError
from regionclip_ext.losses.gather import gather_rows
from regionclip_ext.losses.similarity import cosine_logits


def image_text_loss(
    images_BD: Tensor, texts_BD: Tensor, temperature: float, *, gather: bool = False
) -> Tensor:
    """Cross-entropy of images against captions and of captions against images, averaged.

    Args:
        images_BD: features of whole images, un-normalised.
        texts_BD: features of their captions, in the same order, un-normalised.
        temperature: the logits' divisor.
        gather: compare with the images and captions of all processes. Each process gives as many
            as the one with the fewest (:func:`~regionclip_ext.losses.gather.gather_rows`).

    Returns:
        Scalar, the same in all processes where gathered.

    Raises:
        DatasetError: another number of captions than of images.
    """
    if len(images_BD) != len(texts_BD):
        raise DatasetError(
            f"{len(texts_BD)} captions for {len(images_BD)} images",
            fix="every image of a pretraining batch needs one caption",
        )
    if gather:
        images_BD, texts_BD = gather_rows(images_BD, texts_BD)
    logits_NN = cosine_logits(images_BD, texts_BD, temperature)
    own_N = torch.arange(len(logits_NN), device=logits_NN.device)
    return (F.cross_entropy(logits_NN, own_N) + F.cross_entropy(logits_NN.T, own_N)) / 2
