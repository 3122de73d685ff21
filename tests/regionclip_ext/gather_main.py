"""Worker of test_gather: the image-text loss of one process of several."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm

from regionclip_ext.losses.image_text import image_text_loss


def worker(args: argparse.Namespace) -> None:
    """Loss and gradients of this process' rows (``rank<N>/...`` of the input file)."""
    rank = comm.get_rank()
    with np.load(args.inputs) as content:
        images = torch.from_numpy(content[f"rank{rank}/global_feats"]).requires_grad_()
        texts = torch.from_numpy(content[f"rank{rank}/text_embs"]).requires_grad_()
        temperature = float(content["temp"])
    loss = image_text_loss(images, texts, temperature, gather=True)
    loss.backward()
    np.savez(
        Path(f"{args.result}.{rank}.npz"),
        loss=loss.detach().numpy(),
        grad_global_feats=images.grad.numpy(),
        grad_text_embs=texts.grad.numpy(),
    )
