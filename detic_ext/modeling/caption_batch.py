"""The captions of a step: one per image, from this process or from all (SYNC_CAPTION_BATCH).

Shapes: B images of this process, N captions of all, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from detic_ext.modeling.supervision import CaptionFeatures
from ext_common.errors import DatasetError


def draw_captions(batched_inputs: Sequence[dict[str, Any]]) -> list[str]:
    """One caption of each image, all with the same probability, by torch's global generator.

    Raises:
        DatasetError: an image without captions, or one that is no text.
    """
    drawn = []
    for item in batched_inputs:
        captions = item.get("captions") or ()
        if isinstance(captions, str) or not all(isinstance(text, str) for text in captions):
            problem = f"'captions' is {captions!r}, not a list of texts"
        elif not captions:
            problem = "no captions"
        else:
            drawn.append(captions[int(torch.randint(len(captions), ()))])
            continue
        raise DatasetError(
            problem,
            where=f"image {item.get('file_name', item.get('image_id', ''))}",
            fix="give every image of a caption dataset a caption, or make its kind 'image'",
        )
    return drawn


def gather_captions(
    own_BD: Tensor | None, batch_size: int, width: int, device: torch.device
) -> CaptionFeatures | None:
    """The caption features of all processes; every process must call this in every step.

    Args:
        own_BD: features of this process; None where its batch has no captions.
        batch_size: rows that this process adds, the same in all of them: B of a caption batch, or
            as many zeros, which are negatives for the captions of the others.
        width: D.
        device: of the model.

    Returns:
        None where ``own_BD`` is None.
    """
    rows_BD = torch.zeros(batch_size, width, device=device) if own_BD is None else own_BD
    if comm.get_world_size() > 1:
        parts = [torch.empty_like(rows_BD) for _ in range(comm.get_world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
    else:
        parts = [rows_BD]
    if own_BD is None:
        return None
    return CaptionFeatures(torch.cat(parts), first_own_row=comm.get_rank() * batch_size)
